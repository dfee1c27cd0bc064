"""The transformers path, with tiny models; skipped where the extra [llm] is not installed."""

import pytest
import torch

transformers = pytest.importorskip("transformers")

from wfm_guardrail import Guardrail, Policy  # noqa: E402
from wfm_guardrail.dialects import dialect  # noqa: E402
from wfm_guardrail.llm import LlmCheck, LocalModel, local_check  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # of transformers

TEMPLATE = "{% for m in messages %}<{{ m['content'] }}>{% endfor %}"
ASKED = {"a robot arm": "safe", "a hurt man": "unsafe\nS1"}


@pytest.fixture(scope="module")
def tokenizer():
    """One token for each byte."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: i for i, letter in enumerate([*letters, "<pad>", "<end>"])}
    inner = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", eos_token="<end>", chat_template=TEMPLATE
    )


@pytest.fixture(scope="module")
def network(tokenizer):
    """A random Llama of 32 channels."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    return transformers.LlamaForCausalLM(config).eval()


@pytest.mark.parametrize("speaks", ["llama-guard-3", "qwen3guard", "shieldgemma", "aegis"])
def test_a_random_model_refuses(network, tokenizer, speaks):
    check = LlmCheck(LocalModel(network, tokenizer), dialect(speaks))
    guard = Guardrail(text_checks=[check], detector=None)
    verdict = guard.check_text("a robot arm")
    assert verdict.category == "undecided"
    assert "llm" not in verdict.checked


def test_numbers_that_are_none_refuse(network, tokenizer):
    broken = transformers.LlamaForCausalLM(network.config).eval()
    torch.nn.init.constant_(broken.lm_head.weight, float("nan"))
    check = LlmCheck(LocalModel(broken, tokenizer), dialect("llama-guard-3"))
    assert not Guardrail(text_checks=[check], detector=None).check_text("a robot arm").safe


def test_a_model_that_learnt_two_answers_is_loaded_from_its_folder(network, tokenizer, tmp_path):
    torch.manual_seed(0)
    pairs = [(tokenizer(f"<{q}>").input_ids, tokenizer(a).input_ids) for q, a in ASKED.items()]
    end = tokenizer.eos_token_id
    rows = [[*q, *a, end] for q, a in pairs]
    longest = max(map(len, rows))
    ids = torch.tensor([row + [end] * (longest - len(row)) for row in rows])
    labels = ids.clone()
    for i, (question, answer) in enumerate(pairs):
        labels[i, : len(question)] = -100
        labels[i, len(question) + len(answer) + 1 :] = -100
    network.train()
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    for _ in range(120):
        optimizer.zero_grad()
        loss = network(input_ids=ids, labels=labels).loss
        loss.backward()
        optimizer.step()
    network.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    llm = {"dialect": "llama-guard-3", "model": str(tmp_path)}
    guard = Guardrail(Policy.model_validate({"llm": llm}), detector=None)
    assert guard.check_text("a robot arm").safe
    assert guard.check_text("a hurt man").category == "violence"


def test_a_folder_that_is_not_there_is_no_download(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing is downloaded"):
        local_check(str(tmp_path / "none"), "qwen3guard")
