"""LoRA recovery (chapter 08): recipes, objectives, stages, the run folder."""

from liger_mini.recovery.adapters import LORA_TARGETS, LigerLoraConfig, quiet_peft
from liger_mini.recovery.recipes import RECIPES, Recipe, Recovery
from liger_mini.recovery.stages import recover

__all__ = ["LORA_TARGETS", "RECIPES", "LigerLoraConfig", "Recipe", "Recovery", "quiet_peft", "recover"]
