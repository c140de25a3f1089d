"""Tasks of chapter 07: linearize a model."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from liger_mini.teaching.exercises.task import Case, Draw, Mistake, Task


def liger_output(recurrence, window, mix):
    """recurrence, window of one shape; mix a number from 0 to 1 -> the same shape"""
    return mix * recurrence + (1 - mix) * window


def output_inputs(draw: Draw) -> Iterator[Case]:
    for mix, shape in (
        (0.5, (2, 5, 3, 4)),
        (0.0, (1, 4, 2, 2)),
        (1.0, (1, 4, 2, 2)),
        (0.25, (3, 3)),
        (1, (4,)),
        (0, (4,)),
    ):
        yield Case("", recurrence=draw.normal(*shape, scale=2), window=draw.normal(*shape), mix=mix)
    share = float(draw.uniform(low=0.6, high=0.9))
    yield Case("", recurrence=draw.normal(6, 2), window=draw.normal(6, 2), mix=share)


def output_in_place(recurrence, window, mix):
    recurrence *= mix
    return recurrence + (1 - mix) * window


LIGER_OUTPUT = Task(
    number="07.1",
    title="Two branches, one output",
    minutes=5,
    difficulty="easy",
    statement="""\
Liger Attention adds its two branches with weights that make up 1: the recurrence has the weight `mix`, the window what is left of it.

Write `liger_output(recurrence, window, mix)`: `recurrence` and `window` are tensors of one shape, `mix` is a number from 0 to 1; the
result has the same shape. With mix 0 and a window over the whole text it must be the teacher's attention.""",
    hints=(
        "The paper has a = b = 0.5: mix is a.",
        "What does mix = 0 have to return, and mix = 1?",
        "`mix * recurrence + (1 - mix) * window`.",
    ),
    reference=liger_output,
    inputs=output_inputs,
    section="chapter 07, section 3",
    mistakes=(
        Mistake(
            "the shares exchanged",
            lambda recurrence, window, mix: (1 - mix) * recurrence + mix * window,
            "Your mix is the window's share. It is the recurrence's; at 0.5 nobody would notice.",
            "chapter 07, section 3",
        ),
        Mistake(
            "the sum",
            lambda recurrence, window, mix: recurrence + window,
            "You add the branches in full. Their weights make up 1, so that the output stays as large as the layer behind expects it.",
            "chapter 07, section 6",
        ),
        Mistake(
            "always half",
            lambda recurrence, window, mix: (recurrence + window) / 2,
            "You take the mean, whatever mix is. That is the paper's default only.",
            "chapter 06, section 2",
        ),
        Mistake(
            "the window in full",
            lambda recurrence, window, mix: mix * recurrence + window,
            "Your window keeps its full weight. It has 1 - mix.",
            "chapter 07, section 3",
        ),
        Mistake(
            "both scaled by mix",
            lambda recurrence, window, mix: mix * (recurrence + window),
            "You scale both branches by mix. At mix = 0 nothing is left; the window should be all there is.",
            "chapter 07, section 3",
        ),
        Mistake(
            "the recurrence in full",
            lambda recurrence, window, mix: recurrence + (1 - mix) * window,
            "Your recurrence keeps its full weight. It has mix, and mix = 0 switches it off.",
            "chapter 07, section 3",
        ),
        Mistake(
            "square roots",
            lambda recurrence, window, mix: mix**0.5 * recurrence + (1 - mix) ** 0.5 * window,
            "You take square roots, so that variances add up to 1. Here the weights themselves do.",
            "chapter 06, section 2",
        ),
        Mistake(
            "changes the recurrence in place",
            output_in_place,
            "Your numbers are right, but `*=` scales the caller's tensor.",
            "chapter 07, section 3",
        ),
    ),
)


def for_query_heads(x, heads):
    """x [B, T, Hkv, K]; heads a multiple of Hkv -> [B, T, heads, K]"""
    return x.repeat_interleave(heads // x.shape[2], dim=2)


def heads_inputs(draw: Draw) -> Iterator[Case]:
    shapes = ((2, 5, 2, 4, 4), (1, 3, 2, 4, 6), (2, 3, 1, 4, 5), (1, 4, 3, 2, 3), (1, 2, 3, 3, 12), (2, 2, 2, 2, 8))
    for B, T, few, K, heads in shapes:
        yield Case("", x=draw.normal(B, T, few, K), heads=heads)


def heads_in_turns(x, heads):
    return x.repeat(1, 1, heads // x.shape[2], 1)


FOR_QUERY_HEADS = Task(
    number="07.2",
    title="Grouped heads",
    minutes=10,
    difficulty="easy",
    statement="""\
With grouped heads, neighbouring query heads share one head of keys and values: of 8 query heads and 2 key heads, query heads 0 to 3 read
key head 0, and 4 to 7 read key head 1. A layer that knows nothing of groups wants one key head for each query head.

Write `for_query_heads(x, heads)`: `x` is [B, T, Hkv, K], keys or values; `heads` is the number of query heads, a multiple of Hkv. The
result is [B, T, heads, K]: in place h stands the head that query head h reads.""",
    hints=(
        "Each head is repeated heads / Hkv times, and the copies stand side by side: 0 0 0 0 1 1 1 1.",
        "`repeat` and `repeat_interleave` do two different things.",
        "`x.repeat_interleave(heads // x.shape[2], dim=2)`.",
    ),
    reference=for_query_heads,
    inputs=heads_inputs,
    section="chapter 06, section 2",
    mistakes=(
        Mistake(
            "in turns",
            heads_in_turns,
            "You repeat the heads in turns, 0 1 0 1. Query heads that share a key head are neighbours: 0 0 1 1. Shapes fit either way, and "
            "half the heads read the wrong keys.",
            "chapter 06, section 2",
        ),
        Mistake(
            "the other way round",
            lambda x, heads: x.flip(2).repeat_interleave(heads // x.shape[2], dim=2),
            "Your heads stand in the opposite order: query head 0 has to read key head 0.",
            "chapter 06, section 2",
        ),
        Mistake(
            "the number of copies",
            lambda x, heads: x.repeat_interleave(x.shape[2], dim=2),
            "You repeat each head Hkv times. It is heads / Hkv times; for 2 and 4 that happens to be the same.",
            "chapter 06, section 2",
        ),
        Mistake(
            "too many copies",
            lambda x, heads: x.repeat_interleave(heads, dim=2),
            "You repeat each head `heads` times. All heads together should be that many.",
            "chapter 06, section 2",
        ),
        Mistake(
            "along time",
            lambda x, heads: x.repeat_interleave(heads // x.shape[2], dim=1),
            "You repeat tokens. The heads are axis 2.",
            "chapter 06, section 2",
        ),
        Mistake(
            "the first head for all",
            lambda x, heads: x[:, :, :1].expand(-1, -1, heads, -1),
            "All your query heads read key head 0. Each group has its own.",
            "chapter 06, section 2",
        ),
    ),
)


def hide_padding(v, log_gate, mask):
    """v [B, T, H, V]; log_gate [B, T, H, K]; mask [B, T], True for a token -> v, log_gate"""
    real = mask[:, :, None, None]
    return torch.where(real, v, 0.0), torch.where(real, log_gate, 0.0)


def hide_inputs(draw: Draw) -> Iterator[Case]:
    masks = {
        "padding on the left": torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]]),
        "nothing is padding": torch.ones(1, 4),
        "padding on the right": torch.tensor([[1, 1, 0], [1, 0, 0], [1, 1, 1]]),
        "one text far shorter": (torch.arange(7) >= torch.tensor([[draw.integer(4, 6)], [0]])),
    }
    for name, mask in masks.items():
        B, T = mask.shape
        H, K, V = (T, T, T) if T == B else (2, 3, 4)
        gate = -draw.uniform(B, T, H, K, low=0.1, high=2)
        yield Case(name, v=draw.normal(B, T, H, V), log_gate=gate, mask=mask.bool())


def hide(v=lambda v, real: v * real, log_gate=lambda g, real: g * real):
    return lambda values, gates, mask: (v(values, mask[..., None, None]), log_gate(gates, mask[..., None, None]))


def hide_in_place(v, log_gate, mask):
    v[~mask], log_gate[~mask] = 0.0, 0.0
    return v, log_gate


HIDE_PADDING = Task(
    number="07.3",
    title="A padded token leaves no trace",
    minutes=10,
    difficulty="medium",
    statement="""\
Attention can mask a padded token. A recurrence reads every token, so padding has to be made harmless before: it must write
nothing into the state, and it must make the state forget nothing.

$$S_t = \\mathrm{diag}(e^{\\texttt{log\\_gate}_t})\\,S_{t-1} + k_t^\\top v_t$$

Write `hide_padding(v, log_gate, mask)`: `v` is [B, T, H, V], `log_gate` is [B, T, H, K], `mask` is [B, T], True for a token and False for
padding, on either side. Return `(v, log_gate)`, changed where the mask is False so that S_t = S_{t-1} there, whatever the key is. Leave the
tensors that you were given as they are.""",
    hints=(
        "Which value writes nothing, and which gate forgets nothing?",
        "v = 0, and α = 1. The logarithm of 1 is 0.",
        "`torch.where(mask[:, :, None, None], v, 0.0)`, and the same for the log-gates.",
    ),
    reference=hide_padding,
    inputs=hide_inputs,
    returns=("v", "log_gate"),
    section="chapter 07, section 7",
    mistakes=(
        Mistake(
            "forgets everything",
            hide(log_gate=lambda g, real: g.masked_fill(~real, -torch.inf)),
            "Your padded tokens have log α = -inf, so α = 0: they wipe the state. -inf hides a *score* from a softmax; a state is kept by "
            "log α = 0.",
            "chapter 07, section 7",
        ),
        Mistake(
            "the gate for its logarithm",
            hide(log_gate=lambda g, real: g.masked_fill(~real, 1.0)),
            "You set the log-gate to 1, so the state grows by e with each padded token. α is 1, its logarithm 0.",
            "chapter 02, section 1",
        ),
        Mistake(
            "padding still forgets",
            hide(log_gate=lambda g, real: g),
            "Your padded tokens write nothing, but their gates still act: behind a long padding on the right the state has faded.",
            "chapter 07, section 7",
        ),
        Mistake(
            "padding still writes",
            hide(v=lambda v, real: v),
            "Your padded tokens forget nothing, but they still write their values into the state.",
            "chapter 07, section 7",
        ),
        Mistake(
            "the mask turned round",
            hide(lambda v, real: v * ~real, lambda g, real: g * ~real),
            "You silence the tokens and keep the padding. The mask is True for tokens.",
            "chapter 07, section 7",
        ),
        Mistake(
            "-inf values",
            hide(v=lambda v, real: v.masked_fill(~real, -torch.inf)),
            "Your padded values are -inf. That is for scores before a softmax; written into a state it stays there for good. Write 0.",
            "chapter 07, section 7",
        ),
        Mistake(
            "changes its arguments in place",
            hide_in_place,
            "Your numbers are right, but you assign into the caller's tensors; the window still needs v.",
            "chapter 07, section 7",
        ),
    ),
)


def changed_fields(before, after):
    """two configs, dicts of name -> value -> sorted list of names"""
    missing = object()
    names = {*before, *after}
    return sorted(name for name in names if before.get(name, missing) != after.get(name, missing))


def fields_inputs(draw: Draw) -> Iterator[Case]:
    window = draw.integer(8, 64)
    old = {
        "model_type": "llama",
        "vocab_size": 97,
        "rope_parameters": {"rope_theta": 1e4},
        "sliding_window": None,
        "pruned_heads": {},
    }
    liger = {"structure": "gla", "window": window, "mix": 0.5}
    new = {key: value for key, value in old.items() if key != "pruned_heads"}
    new |= {"model_type": "liger_llama", "sliding_window": window, "liger": liger, "auto_map": None}
    yield Case("linearized", before=old, after=new)
    yield Case("the other way", before=new, after=old)
    yield Case("nothing changed", before=old, after=dict(reversed(old.items())))
    yield Case("nested", before=new, after=new | {"liger": liger | {"window": window + 1}})
    yield Case("from nothing", before={}, after={"b": 1, "a": None})
    yield Case("falsy values", before={"x": 0, "y": None, "z": []}, after={"z": None, "y": [], "x": None})


CHANGED_FIELDS = Task(
    number="07.4",
    title="What did it change?",
    minutes=10,
    difficulty="easy",
    statement="""\
A conversion that keeps its promise changes a few fields of the config and nothing else. Write `changed_fields(before, after)`: both are
dicts, as `config.to_dict()` returns them. The result is the sorted list of the names whose value is another one, that are new, or
that are gone. A field that is None and a field that is not there are two different things.""",
    hints=(
        "All names that occur at all: `{*before, *after}`.",
        "`dict.get` gives None for a name that is not there, and so does a name whose value is None. Give it another default.",
        "`missing = object()`, then compare `before.get(name, missing) != after.get(name, missing)`, and sort.",
    ),
    reference=changed_fields,
    inputs=fields_inputs,
    section="chapter 07, section 2",
    mistakes=(
        Mistake(
            "None for missing",
            lambda before, after: sorted(n for n in {*before, *after} if before.get(n) != after.get(n)),
            "You take a missing field for one that is None. A new field whose value is None goes unnoticed.",
            "chapter 07, section 2",
        ),
        Mistake(
            "common names only",
            lambda before, after: sorted(n for n in before.keys() & after.keys() if before[n] != after[n]),
            "You compare the fields that both have. What was added or taken away is a change as well.",
            "chapter 07, section 2",
        ),
        Mistake(
            "what is gone is missed",
            lambda before, after: sorted(n for n in after if n not in before or before[n] != after[n]),
            "You look at the new config's fields. Fields that only the old one had are gone, which is a change.",
            "chapter 07, section 2",
        ),
        Mistake(
            "what is new is missed",
            lambda before, after: sorted(n for n in before if n not in after or before[n] != after[n]),
            "You look at the old config's fields. The most telling change is a field that it did not have: `liger`.",
            "chapter 07, section 2",
        ),
        Mistake(
            "names only",
            lambda before, after: sorted(before.keys() ^ after.keys()),
            "You compare names. A field that is in both may have another value.",
            "chapter 07, section 2",
        ),
        Mistake(
            "what stayed",
            lambda before, after: sorted(n for n in before.keys() & after.keys() if before[n] == after[n]),
            "You list the fields that stayed the same.",
            "chapter 07, section 2",
        ),
        Mistake(
            "truth for equality",
            lambda before, after: sorted(n for n in {*before, *after} if bool(before.get(n)) != bool(after.get(n))),
            'You compare whether values are truthy. "llama" and "liger_llama" are both, and still two values.',
            "chapter 07, section 2",
        ),
    ),
)


def cache_bytes(T, layers, softmax_every, heads, width, window):
    """tokens, layers, every which layer is kept (or None), key/value heads, K = V, W -> bytes (int), float32"""
    kept = layers // softmax_every if softmax_every else 0
    softmax = 2 * T * heads * width
    liger = heads * width**2 + 2 * (window - 1) * heads * width
    return 4 * (kept * softmax + (layers - kept) * liger)


def cache_inputs(draw: Draw) -> Iterator[Case]:
    models = (
        (1024, 4, None, 2, 64, 16),
        (4096, 4, 4, 2, 64, 16),
        (4096, 4, 2, 2, 64, 16),
        (2000, 16, 8, 8, 64, 64),
        (500, 10, 4, 3, 16, 32),
        (100, 6, 8, 2, 8, 1),
        (77, 5, 1, 1, 4, 2),
        (draw.integer(200, 9000), draw.integer(20, 60), 8, 4, 32, draw.integer(8, 64)),
    )
    for sizes in models:
        yield Case("", **dict(zip(("T", "layers", "softmax_every", "heads", "width", "window"), sizes)))


def _cache(count=lambda layers, every: layers // every if every else 0, keys=2, old=-1, state=1, number=4, both=0):
    def cache(T, layers, softmax_every, heads, width, window):
        kept, row = count(layers, softmax_every), heads * width
        liger = state * row * width + keys * (window + old) * row
        return number * (kept * (keys * T * row + both * row * width) + (layers - kept) * liger)

    return cache


CACHE_BYTES = Task(
    number="07.5",
    title="What a hybrid keeps",
    minutes=15,
    difficulty="medium",
    statement="""\
A hybrid keeps every n-th layer as softmax attention, that is layers n, 2n, 3n, … counted from 1. The others are Liger layers. How many
bytes does its decode cache take after T tokens of one text, in float32?

* A softmax layer keeps a key and a value of each token, for each key/value head.
* A Liger layer keeps a state of K x V numbers for each key/value head, and the last W - 1 keys and values.

Write `cache_bytes(T, layers, softmax_every, heads, width, window)`: `softmax_every` is n, or None for a model without softmax layers; `heads`
are the key/value heads, `width` is K = V, and T ≥ W. The result is an int.""",
    hints=(
        "How many layers are kept? Of 10 layers with n = 4, layers 4 and 8.",
        "Per head: 2 T K numbers for softmax, K² + 2 (W - 1) K for Liger. A float32 has 4 bytes.",
        "`kept = layers // softmax_every if softmax_every else 0`, and `layers - kept` of the others.",
    ),
    reference=cache_bytes,
    inputs=cache_inputs,
    section="chapter 07, section 8",
    mistakes=(
        Mistake(
            "W old keys",
            _cache(old=0),
            "Your window keeps W keys and values. The current token brings its own: W - 1 old ones are enough.",
            "chapter 06, section 5",
        ),
        Mistake(
            "keys without values",
            _cache(keys=1),
            "You count keys and forget the values, which take as much again.",
            "chapter 07, section 8",
        ),
        Mistake(
            "numbers, not bytes",
            _cache(number=1),
            "That is how many numbers are kept. A float32 has 4 bytes.",
            "chapter 07, section 8",
        ),
        Mistake(
            "no state",
            _cache(state=0),
            "Your Liger layers keep a window and no recurrent state: K x V numbers per head are missing.",
            "chapter 07, section 8",
        ),
        Mistake(
            "kept and swapped exchanged",
            _cache(count=lambda layers, every: layers - layers // every if every else layers),
            "You keep the layers that are swapped, and swap those that are kept. Every n-th is softmax.",
            "chapter 07, section 8",
        ),
        Mistake(
            "rounded up",
            _cache(count=lambda layers, every: -(-layers // every) if every else 0),
            "You round the number of kept layers up. The last layers, short of another n, have none.",
            "chapter 07, section 8",
        ),
        Mistake(
            "a state in every layer",
            _cache(both=1),
            "Your softmax layers have a recurrent state as well. A kept layer is what it was: keys and values.",
            "chapter 07, section 8",
        ),
        Mistake(
            "constant memory",
            _cache(count=lambda layers, every: 0),
            "You count Liger layers alone. A hybrid keeps softmax layers, and their memory grows with T.",
            "chapter 07, section 8",
        ),
    ),
)

TASKS = (LIGER_OUTPUT, FOR_QUERY_HEADS, HIDE_PADDING, CHANGED_FIELDS, CACHE_BYTES)
