"""What version 0.1.0 saved, a model's folder and an adapter, still loads, to the same logits."""

import json
import subprocess
import sys
from pathlib import Path

import torch
from peft import PeftModel

import liger_mini as lm

SAVED = Path(__file__).parent / "fixtures" / "saved-by-0.1.0"
LOGITS = json.loads((SAVED / "logits.json").read_text())
TOLERANCE = 1e-5  # logits are about 1, and other processors sum in another order: a hundred roundings of 6e-8


@torch.no_grad()
def test_a_folder_and_an_adapter_load_to_the_same_logits():
    model, ids = lm.load(SAVED / "model").eval(), torch.tensor(LOGITS["input_ids"])
    torch.testing.assert_close(model(ids).logits[0, -1], torch.tensor(LOGITS["model"]), rtol=0, atol=TOLERANCE)
    adapted = PeftModel.from_pretrained(model, SAVED / "adapter").eval()
    expected = torch.tensor(LOGITS["with the adapter"])
    assert (expected - torch.tensor(LOGITS["model"])).abs().max() > 0.1
    torch.testing.assert_close(adapted(ids).logits[0, -1], expected, rtol=0, atol=TOLERANCE)


def test_a_folder_opens_in_a_process_that_has_not_imported_the_package():
    code = (
        "import sys; from transformers import AutoModelForCausalLM as Auto; "
        f"model = Auto.from_pretrained({str(SAVED / 'model')!r}, trust_remote_code=True); print(type(model).__name__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "LigerLlamaForCausalLM"
