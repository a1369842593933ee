"""ChatGLM2 and ChatGLM3 against what the published code computed (../shared/golden), and against themselves."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from keju.models.backbone import tree_logprobs
from keju.models.chatglm2 import ChatGLM2Config, ChatGLM2ForConditionalGeneration
from keju.models.rotary import rotary_angles
from keju.trees.packed_batch import PackedBatch
from keju.trees.segment import Segment

IMPLEMENTATIONS = ["eager", "sdpa", "keju"]
FORWARD_CASES = [
    *("basic", "long", "row0", "row1", "row2", "loss"),
    *("left", "left_pos", "left_nomask", "right", "right_pos", "right_nomask"),
]
# The label that the original does not train: its config's pad_token_id.
IGNORED = {"chatglm2": 2, "chatglm3": -100}
PROMPT, ANSWERS = [1, 10, 11, 12, 13], [[20, 21, 2], [30, 2], [20, 40, 41, 42, 2]]


@pytest.fixture(scope="module", params=["chatglm2", "chatglm3"])
def family(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def folder(shared, family):
    return shared / "golden" / family


@pytest.fixture(scope="module")
def golden(folder) -> dict[str, torch.Tensor]:
    return load_file(folder / "golden.safetensors")


@pytest.fixture(scope="module")
def models(folder):
    from keju.models import attention  # noqa: F401  registers "keju"

    load = ChatGLM2ForConditionalGeneration.from_pretrained
    return {name: load(folder, attn_implementation=name) for name in IMPLEMENTATIONS}


@pytest.fixture
def model(folder):
    return ChatGLM2ForConditionalGeneration.from_pretrained(folder)


def tiny_config(**overrides) -> ChatGLM2Config:
    sizes = dict(
        padded_vocab_size=50,
        seq_length=32,
        hidden_size=16,
        ffn_hidden_size=20,
        kv_channels=8,
        num_layers=2,
        num_attention_heads=4,
        multi_query_group_num=2,
        initializer_range=0.2,
    )
    return ChatGLM2Config(**{**sizes, **overrides})


def inputs_of(golden: dict, case: str) -> dict[str, torch.Tensor]:
    names = ("input_ids", "attention_mask", "position_ids")
    return {name: golden[f"{case}.{name}"] for name in names if f"{case}.{name}" in golden}


def assert_logits(ours: torch.Tensor, theirs: torch.Tensor, mask: torch.Tensor | None = None) -> None:
    """At real positions: the original lets the rows of pads see everything."""
    assert ours.shape == theirs.shape
    keep = torch.ones(ours.shape[:2], dtype=torch.bool) if mask is None else mask.bool()
    torch.testing.assert_close(ours[keep], theirs[keep], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("case", FORWARD_CASES)
@torch.no_grad()
def test_logits_equal_the_original(models, golden, case, implementation):
    inputs = inputs_of(golden, case)
    logits = models[implementation](**inputs).logits
    assert not logits.isnan().any()
    assert_logits(logits, golden[f"{case}.logits"], inputs.get("attention_mask"))


@pytest.mark.parametrize("dtype", [torch.int64, torch.float32, torch.bool, torch.uint8])
@pytest.mark.parametrize("case", ["left", "right"])
@torch.no_grad()
def test_padded_rows_equal_unpadded_rows_for_a_mask_of_any_dtype(models, golden, case, dtype):
    mask = golden[f"{case}.attention_mask"]
    logits = models["sdpa"](golden[f"{case}.input_ids"], attention_mask=mask.to(dtype)).logits
    for row in range(3):
        assert_logits(logits[row][mask[row].bool()][None], golden[f"row{row}.logits"])


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@torch.no_grad()
def test_a_4d_mask_says_what_counts(models, golden, implementation):
    """The original's full_attention_mask says what is masked."""
    counts = ~golden["full_bool.full_attention_mask"].bool()
    assert not counts.tril().all(), "the case masks more than the future"
    logits = models[implementation](golden["full_bool.input_ids"], attention_mask=counts).logits
    assert_logits(logits, golden["full_bool.logits"])
    with pytest.raises(ValueError, match="^full_attention_mask is not taken: .*$"):
        models[implementation](golden["full_bool.input_ids"], full_attention_mask=~counts)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@torch.no_grad()
def test_a_4d_float_mask_is_added(shared, implementation):
    folder = shared / "golden" / "chatglm2"
    golden = load_file(folder / "golden.safetensors")
    model = ChatGLM2ForConditionalGeneration.from_pretrained(folder, attn_implementation=implementation)
    logits = model(golden["packed.input_ids"], attention_mask=golden["packed.full_attention_mask"][:, None]).logits
    assert_logits(logits, golden["packed.logits"])


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@torch.no_grad()
def test_hidden_states_equal_the_original(models, golden, implementation):
    model, ids = models[implementation], golden["basic.input_ids"]
    unnormed = []
    hook = model.transformer.encoder["layers"][-1].register_forward_hook(lambda *args: unnormed.append(args[-1]))
    output = model(ids, output_hidden_states=True)
    hook.remove()
    assert len(output.hidden_states) == 4
    torch.testing.assert_close(output.hidden_states[1], golden["basic.hidden_1"], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(unnormed[0], golden["basic.hidden_prenorm"], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(output.hidden_states[3], golden["basic.hidden"], atol=1e-4, rtol=1e-4)
    assert torch.equal(model.transformer(ids).last_hidden_state, output.hidden_states[3])


def test_attention_weights_are_returned_by_eager_attention(models, golden):
    attentions = models["eager"](golden["basic.input_ids"], output_attentions=True).attentions
    assert [tuple(weights.shape) for weights in attentions] == [(2, 4, 12, 12)] * 3
    torch.testing.assert_close(attentions[2].sum(-1), torch.ones(2, 4, 12))


@torch.no_grad()
def test_rows_longer_than_seq_length(models, golden):
    """The original fails there. Only distances count, so that far positions must agree with near ones."""
    ids = golden["long.input_ids"]
    assert ids.shape[1] == models["sdpa"].config.seq_length
    logits = models["sdpa"](torch.cat([ids, ids[:, :12]], 1)).logits
    assert_logits(logits[:, :128], golden["long.logits"])
    far = models["sdpa"](golden["row0.input_ids"], position_ids=torch.arange(1000, 1012)[None]).logits
    torch.testing.assert_close(far, golden["row0.logits"], atol=2e-3, rtol=1e-3)


def test_rotary_angles_are_computed_in_float32():
    positions = torch.tensor([[30001]])
    exact = (30001 / 10000 ** (torch.arange(0, 64, 2, dtype=torch.float64) / 64)).cos()
    cos, _ = rotary_angles(positions, 64)
    assert cos.shape == (1, 1, 32)
    torch.testing.assert_close(cos[0, 0].double(), exact, atol=1e-2, rtol=0)


def test_losses_equal_the_original(model, golden, family):
    labels = golden["loss.labels"]
    ignored = labels == IGNORED[family]
    assert ignored.any()
    labels = labels.masked_fill(ignored, -100)
    output = model(golden["loss.input_ids"], labels=labels)
    torch.testing.assert_close(output.loss, golden["loss.loss"], atol=1e-5, rtol=0)


def test_an_end_token_is_trained_though_it_is_also_the_pad(model, golden, family):
    """ChatGLM2 ignored it, ChatGLM3 with its pad of -100 did not."""
    ids, labels = golden["loss_eos.input_ids"], golden["loss_eos.labels"].clone()
    ends = torch.zeros_like(labels, dtype=torch.bool)
    ends[:, 4] = True
    labels[(golden["loss.labels"] == IGNORED[family]) & ~ends] = -100
    assert torch.equal(labels == 2, ends)
    output = model(ids, labels=labels)
    logprobs = output.logits[:, :-1].log_softmax(-1)
    counted = labels[:, 1:] != -100
    by_hand = -logprobs.gather(-1, labels[:, 1:].clamp(min=0)[..., None])[..., 0][counted].mean()
    torch.testing.assert_close(output.loss, by_hand, atol=1e-5, rtol=0)
    theirs = labels if family == "chatglm3" else labels.masked_fill(ends, -100)
    torch.testing.assert_close(model(ids, labels=theirs).loss, golden["loss_eos.loss"], atol=1e-5, rtol=0)


@pytest.mark.parametrize(("eos", "trained"), [(2, 1), ([7, 8], 1), ([2, 3], 2), (3, 2)])
def test_a_pad_that_is_no_end_is_not_trained(eos, trained):
    """The labels are 3 and 9, the pad is 3."""
    model = ChatGLM2ForConditionalGeneration(tiny_config(pad_token_id=3, eos_token_id=eos))
    output = model(torch.tensor([[5, 3, 9]]), labels=torch.tensor([[-100, 3, 9]]))
    logprobs = output.logits[0, :2].log_softmax(-1)[[0, 1], [3, 9]]
    torch.testing.assert_close(output.loss, -logprobs[-trained:].mean())


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_equal_the_original(model, golden, folder, family, checkpointing):
    expected = json.loads((folder / "grads.json").read_text())
    if checkpointing:
        model.gradient_checkpointing_enable()
        model.train()  # checkpoints are taken in training mode alone
        calls = []
        model.transformer.encoder["layers"][1].input_layernorm.register_forward_hook(lambda *args: calls.append(1))
    labels = golden["loss.labels"]
    labels = labels.masked_fill(labels == IGNORED[family], -100)
    model(golden["loss.input_ids"], labels=labels, use_cache=False).loss.backward()
    if checkpointing:
        assert len(calls) == 2, "a checkpointed block runs again in the backward pass"
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert set(gradients) == set(expected["grads"])
    for name, gradient in gradients.items():
        theirs = expected["grads"][name]
        assert gradient.norm().item() == pytest.approx(theirs["norm"], rel=1e-4), name
        assert gradient.abs().max().item() == pytest.approx(theirs["absmax"], rel=1e-4), name
        # A sum of parts with both signs cancels: its error follows the size of the parts.
        assert gradient.sum().item() == pytest.approx(theirs["sum"], abs=1e-5 * gradient.abs().sum().item()), name


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@torch.no_grad()
def test_cache_equals_the_original(models, golden, implementation):
    """Positions count on from the cache, chunks of several tokens included; the original had to be told."""
    ids, past, logits = golden["cache.input_ids"], None, []
    for start, end in [(0, 6), (6, 8), (8, 9), (9, 10)]:
        output = models[implementation](ids[:, start:end], past_key_values=past, use_cache=True)
        past = output.past_key_values
        logits.append(output.logits)
    assert_logits(torch.cat(logits, 1), golden["cache.logits"])
    last = past.layers[-1]
    for ours, name in [(last.keys, "key"), (last.values, "value")]:
        theirs = golden[f"cache.last_layer_{name}"].permute(1, 2, 0, 3)  # [time, batch, groups, head_dim]
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_position_ids_are_used_with_a_cache(models, golden):
    """Told to start again at 0, the model answers as the original did without being told."""
    ids = golden["cache_nopos.input_ids"]
    logits = {}
    for name, position_ids in [("ours", None), ("theirs", torch.zeros(2, 1, dtype=torch.int64))]:
        past = models["sdpa"](ids[:, :6], use_cache=True).past_key_values
        logits[name] = models["sdpa"](ids[:, 6:], past_key_values=past, position_ids=position_ids).logits
    assert_logits(logits["theirs"], golden["cache_nopos.logits"])
    assert_logits(logits["ours"], models["sdpa"](ids).logits[:, -1:])
    assert (logits["ours"] - logits["theirs"]).abs().max() > 0.1


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("case", ["gen0", "gen1", "gen_left_pos", "gen_left_nopos"])
def test_greedy_generation_equals_the_original(models, golden, case, implementation):
    prompt = golden[f"{case}.prompt_ids"]
    inputs = inputs_of(golden, case)
    inputs.setdefault("attention_mask", torch.ones_like(prompt))
    model, lengths = models[implementation], []
    embeddings = model.get_input_embeddings()
    hook = embeddings.register_forward_hook(lambda module, args, output: lengths.append(args[0].shape[1]))
    output = model.generate(prompt, max_new_tokens=16, do_sample=False, **inputs)
    hook.remove()
    assert output.tolist() == golden[f"{case}.output_ids"].tolist()
    assert lengths == [prompt.shape[1]] + [1] * 15, "the cache holds all but the newest token"
    if len(prompt) == 2:
        assert output[0, 3:].tolist() == golden["gen0.output_ids"][0].tolist(), "left padding changes nothing"
        assert output[1].tolist() == golden["gen1.output_ids"][0].tolist()


@torch.no_grad()
def test_only_the_logits_that_are_asked_for(models, golden):
    ids = golden["basic.input_ids"]
    assert_logits(models["sdpa"](ids, logits_to_keep=1).logits, golden["last_logit.logits"])
    assert_logits(models["sdpa"](ids, logits_to_keep=2).logits, golden["basic.logits"][:, -2:])
    kept = torch.tensor([0, 5])
    assert_logits(models["sdpa"](ids, logits_to_keep=kept).logits, golden["basic.logits"][:, kept])


def test_embeddings_may_be_given_instead_of_ids(models, golden):
    ids = golden["basic.input_ids"]
    embeddings = models["sdpa"].get_input_embeddings()(ids)
    assert_logits(models["sdpa"](inputs_embeds=embeddings).logits, golden["basic.logits"])


def test_trees_equal_rows(models):
    model = models["keju"]
    trees = [Segment(PROMPT, branches=[Segment(ids, True) for ids in ANSWERS]), Segment([1, 50, 51], True)]
    rows = [*((PROMPT + ids, len(PROMPT)) for ids in ANSWERS), ([1, 50, 51], 1)]
    parameters = list(model.parameters())
    ours = tree_logprobs(model, PackedBatch.from_trees(trees)).logprobs
    gradients = torch.autograd.grad(ours.sum(), parameters)
    expected = []
    for row, start in rows:
        ids = torch.tensor([row])
        logprobs = model(ids).logits[0, :-1].log_softmax(-1).gather(-1, ids[0, 1:, None])[:, 0]
        expected.append(logprobs[start - 1 :])
    torch.testing.assert_close(ours, torch.cat(expected), atol=2e-5, rtol=1e-5)
    for gradient, theirs in zip(gradients, torch.autograd.grad(torch.cat(expected).sum(), parameters), strict=True):
        torch.testing.assert_close(gradient, theirs, atol=1e-4 * theirs.abs().max().item(), rtol=1e-4)


@torch.no_grad()
def test_bfloat16(folder, golden):
    model = ChatGLM2ForConditionalGeneration.from_pretrained(folder, dtype=torch.bfloat16)
    logits = model(golden["left.input_ids"], attention_mask=golden["left.attention_mask"]).logits
    assert logits.dtype == torch.bfloat16
    real = golden["left.attention_mask"].bool()
    error = (logits.float() - golden["left.logits"])[real]
    assert error.norm() < 0.05 * golden["left.logits"][real].norm()
