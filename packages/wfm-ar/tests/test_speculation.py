"""Speculative decoding is exact: greedy tokens are the same, drawn ones have the same law."""

import itertools

import pytest
import torch
from fakes import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

import wfm_ar as wa
from wfm_ar.medusa import FILE
from wfm_ar.tokens import TokenSet


class Random:
    """Guesses anything, sometimes nothing."""

    def __init__(self, vocab, seed):
        self.vocab, self.noise = vocab, torch.Generator().manual_seed(seed)

    def propose(self, tokens, hidden, /):
        k = int(torch.randint(4, (), generator=self.noise))
        return torch.randint(self.vocab, (len(tokens), k), generator=self.noise)


class Knowing:
    """Guesses what plain decoding found, with every third token wrong."""

    def __init__(self, answer, spoil=3):
        self.answer, self.spoil = answer, spoil

    def propose(self, tokens, hidden, /):
        guess = self.answer[:, tokens.shape[1] :][:, :5].clone()
        at = torch.arange(tokens.shape[1], tokens.shape[1] + guess.shape[1]) % self.spoil == 0
        return torch.where(at, (guess + 1) % 40, guess)


@settings(max_examples=6)
@given(prompt=st.integers(1, 8), rows=st.integers(1, 3), seed=st.integers(0, 2**31))
def test_greedy_tokens_are_the_same_whatever_is_guessed(prompt, rows, seed):
    lm, noise = tiny(), torch.Generator().manual_seed(seed)
    start = torch.randint(40, (rows, prompt), generator=noise)
    context = torch.randn(rows, 4, 8, generator=noise)
    plain = wa.generate(lm, start, 12 - prompt, context=context)
    knowing = Knowing(torch.cat([start, plain], 1))
    for draft in (Random(40, seed), wa.PreviousFrame(4, 3), knowing):
        found = wa.speculate(lm, start, 12 - prompt, wa.Sampler(), draft, context=context)
        assert torch.equal(found.tokens, plain)


def test_right_guesses_save_passes():
    lm, start = tiny(), torch.arange(3)[None]
    plain = wa.generate(lm, start, 9)
    draft = Knowing(torch.cat([start, plain], 1), spoil=99)
    found = wa.speculate(lm, start, 9, wa.Sampler(), draft)
    assert (found.passes, found.tokens_per_pass) == (2, 4.0)
    none = wa.speculate(lm, start, 9, wa.Sampler(), Random(1, 0))
    assert none.passes <= 8
    assert wa.speculate(lm, start, 0, wa.Sampler(), draft).tokens.shape == (1, 0)


class Markov(wa.ArTransformer):
    """The next token depends on the last one only, by a table of scores."""

    def __init__(self, vocab):
        super().__init__(tiny(num_layers=1).config)
        self.table = torch.randn(vocab, vocab, generator=torch.Generator().manual_seed(5)) * 1.5
        self.head = torch.nn.Linear(vocab, vocab, bias=False)
        self.head.weight.data = self.table.T

    def hidden(self, tokens, cache, *, grid=None):
        return torch.nn.functional.one_hot(tokens, len(self.table)).float()


@pytest.mark.parametrize(
    "sampling",
    [{"temperature": 1.0}, {"temperature": 0.7, "top_p": 0.8}, {"temperature": 1.3, "top_k": 2}],
)
def test_drawn_tokens_have_the_law_of_plain_decoding(sampling):
    lm, vocab, n, rows, rounds = Markov(3), 3, 3, 2, 400
    generator = torch.Generator().manual_seed(0)
    sampler = wa.Sampler(**sampling, generator=generator)
    start = torch.tensor([[1, 2]]).expand(rows, -1)
    counts = torch.zeros((vocab,) * n)
    for _ in range(rounds):
        draft = wa.PreviousFrame(2, 2)
        for row in wa.speculate(lm, start, n, sampler, draft).tokens.tolist():
            counts[tuple(row)] += 1
    step = sampler.distribution(lm.table)
    law = torch.zeros((vocab,) * n)
    for path in itertools.product(range(vocab), repeat=n):
        law[path] = torch.stack([step[a, b] for a, b in zip((2, *path), path, strict=False)]).prod()
    assert counts[law == 0].sum() == 0
    expected = law * rounds * rows
    often = expected > 5  # the rest is one cell
    cells = [(counts[often], expected[often])]
    cells.append((counts[~often].sum()[None], expected[~often].sum()[None]))
    found = torch.cat([c for c, _ in cells])
    wanted = torch.cat([e for _, e in cells]).clamp(min=1e-9)
    chi2 = ((found - wanted).square() / wanted).sum().item()
    freedom = len(found) - 1
    # Wilson-Hilferty: chi2 is this many standard deviations above what chance gives.
    excess = ((chi2 / freedom) ** (1 / 3) - (1 - 2 / (9 * freedom))) / (2 / (9 * freedom)) ** 0.5
    assert excess < 3.5


def test_the_law_test_notices_a_careless_rule(monkeypatch):
    def careless(sampler, scores, guesses):  # refuses well, but draws from the whole law
        p = sampler.distribution(scores.flatten(0, 1)).unflatten(0, scores.shape[:2])
        likely = p[:, :-1].gather(-1, guesses[..., None])[..., 0]
        kept = sampler.uniform(likely) < likely
        accepted = int(kept.long().cumprod(1).sum(1).min()) if guesses.shape[1] else 0
        return torch.cat([guesses[:, :accepted], sampler.draw(p[:, accepted])], 1)

    monkeypatch.setattr("wfm_ar.speculation.check", careless)
    with pytest.raises(AssertionError):
        test_drawn_tokens_have_the_law_of_plain_decoding({"temperature": 1.0})


def test_the_previous_frame_is_copied_place_by_place():
    tokens = torch.arange(10)[None]
    draft, hidden = wa.PreviousFrame(4, 3), torch.zeros(1, 2)
    assert draft.propose(tokens, hidden).tolist() == [[6, 7, 8]]
    assert wa.PreviousFrame(4, 4).propose(tokens[:, :4], hidden).tolist() == [[0, 1, 2, 3]]
    assert draft.propose(tokens[:, :3], hidden).shape == (1, 0)
    assert wa.PreviousFrame(4, 4, begin=1).propose(tokens[:, :4], hidden).shape == (1, 0)
    with pytest.raises(ValueError, match="cannot copy 5 at once"):
        wa.PreviousFrame(4, 5)


def rising(clips=30):
    """Return clips whose tokens count up from anywhere: easy to foresee."""
    start = torch.randint(40, (clips, 1), generator=torch.Generator().manual_seed(0))
    tokens = (start + torch.arange(12)) % 40
    return TokenSet(tokens.view(clips, 3, 2, 2).int(), torch.arange(clips), None)


def test_heads_learn_on_a_frozen_model_and_are_kept(tmp_path):
    lm = tiny(dim=48)
    before = {k: v.clone() for k, v in lm.state_dict().items()}
    told = []
    heads, accuracy = wa.train_heads(
        lm, rising(), count=3, steps=150, lr=1e-2, log=lambda step, x: told.append((step, x))
    )
    assert all(torch.equal(before[k], v) for k, v in lm.state_dict().items())
    assert all(weight.grad is None for weight in lm.parameters())
    assert len(accuracy) == 3
    assert min(accuracy) > 0.5
    assert [step for step, _ in told] == [50, 100, 150]
    heads.save(tmp_path, lm)
    again = wa.load_heads(tmp_path, wa.for_decoding(lm))
    hidden = torch.randn(2, 48, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(again(hidden), heads(hidden), rtol=0, atol=0.05)
    start = torch.arange(4)[None]
    found = wa.speculate(lm, start, 8, wa.Sampler(), again)
    assert torch.equal(found.tokens, wa.generate(lm, start, 8))
    with pytest.raises(ValueError, match=f"{FILE}: heads of another model"):
        wa.load_heads(tmp_path, tiny())
    with pytest.raises(FileNotFoundError, match="no such file"):
        wa.load_heads(tmp_path / "none", lm)
    with pytest.raises(ValueError, match="count must be 1 or more"):
        wa.MedusaHeads(lm, 0)
    with pytest.raises(ValueError, match="not on a copy for decoding"):
        wa.train_heads(wa.for_decoding(lm), rising())
