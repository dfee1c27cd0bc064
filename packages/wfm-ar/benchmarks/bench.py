"""Measure decoding beside its floor, transformers, vLLM, and a loop like the reference's.

    python packages/wfm-ar/benchmarks/bench.py           # a Markdown table
    python packages/wfm-ar/benchmarks/bench.py --quick   # sizes of a minute

Random weights of 74 M parameters in float32, batch 1, greedy, one CPU thread; processor time, so
that other programs disturb little. What is compared runs in turn in this one process. A part
whose library is missing is named and left out.
"""

import argparse
import os
import statistics
import sys
from collections.abc import Iterator
from functools import partial
from itertools import pairwise
from tempfile import TemporaryDirectory
from typing import Any

import torch
from reference_loop import ReferenceLoop
from torch import Tensor

import wfm_ar as wa
from wfm_ar.bench import clock, medians, product_seconds, token_seconds, weight_bytes
from wfm_ar.model import Cache
from wfm_ar.serving import write_served

WIDTHS = {"dim": 768, "num_layers": 8, "num_heads": 12, "num_kv_heads": 4, "head_dim": 64}
SIZE = WIDTHS | {"ffn_dim": 2688, "vocab_size": 8000, "rope_theta": 10_000.0}
VIDEO = SIZE | {"grid": (20, 16, 16), "max_positions": 5120}
TEXT = VIDEO | {"cross_every": 1, "context_dim": 1024, "text_slots": 512}
LINE = SIZE | {"rope": "1d", "grid": None, "max_positions": 5120, "qk_norm": False}

Row = tuple[str, float, str]


def model(settings: dict[str, object]) -> wa.ArTransformer:
    """Return random weights that keep the spread of what they are multiplied with."""
    with torch.device("meta"):
        lm = wa.ArTransformer(wa.ArConfig.model_validate(settings))
    lm = lm.to_empty(device="cpu").requires_grad_(False).eval()
    generator = torch.Generator().manual_seed(0)
    for name, weight in lm.named_parameters():
        if weight.ndim == 1:
            weight.fill_(1)
        else:
            width = (3.0 if name == "embed.weight" else 3.0 / weight.shape[1]) ** 0.5
            weight.uniform_(-width, width, generator=generator)
    return lm


def prompt_of(lm: wa.ArTransformer, length: int) -> Tensor:
    return torch.randint(lm.vocab_size, (1, length), generator=torch.Generator().manual_seed(1))


def token_median(lm: wa.ArTransformer, prompt: Tensor, n: int) -> float:
    return statistics.median(token_seconds(lm, prompt, n))


def floor(rounds: int) -> Iterator[Row]:
    """Tokens a second, and the share of what the matrices alone would allow."""
    lm = model(VIDEO)
    kinds = {"float32, plain layout": lm, "float32": wa.for_decoding(lm)}
    kinds |= {name: wa.for_decoding(lm, weights=name) for name in ("bfloat16", "int8")}
    prompt, calls = prompt_of(lm, 64), {}
    for name, kind in kinds.items():
        calls[name] = partial(token_median, kind, prompt, 12)
        calls[f"{name} floor"] = partial(product_seconds, kind)
    buffer = torch.ones(weight_bytes(lm) // 4)

    def read() -> float:
        began = clock()
        buffer.sum()
        return clock() - began

    found = medians(calls | {"read": read}, rounds)
    for name, kind in kinds.items():
        yield f"{name}: tokens/s", 1 / found[name], f"{weight_bytes(kind) / 1e6:.0f} MB a token"
        share = found[f"{name} floor"] / found[name]
        yield f"{name}: share of the weight-streaming floor (same matrices only)", share, ""
    what = "float32: share of the time to add up as many bytes (memory alone)"
    yield what, found["read"] / found["float32"], ""
    fast = kinds["float32"]
    batched = medians(
        {
            "one": partial(token_median, fast, prompt, 8),
            "eight": partial(token_median, fast, prompt.expand(8, -1), 8),
        },
        rounds,
    )
    yield "float32: a batch of 8 over batch 1", 8 * batched["one"] / batched["eight"], "x tokens/s"


def transformers(rounds: int) -> Iterator[Row]:
    """The same weights in transformers' Llama with its static cache."""
    from transformers import LlamaConfig, LlamaForCausalLM

    lm, n = model(LINE), 8
    config = LlamaConfig(
        vocab_size=8000, hidden_size=768, intermediate_size=2688, num_hidden_layers=8,
        num_attention_heads=12, num_key_value_heads=4, head_dim=64, rms_norm_eps=1e-5,
        max_position_embeddings=5120, tie_word_embeddings=False, attn_implementation="sdpa",
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
    )  # fmt: skip
    llama = LlamaForCausalLM(config).eval()
    llama.load_state_dict(llama_weights(lm))
    fast = wa.for_decoding(lm)
    for length, room in ((64, 256), (1024, 1280)):
        prompt = prompt_of(lm, length)
        theirs = StaticLoop(llama, prompt, n, room)
        same = torch.equal(theirs.run()[0], wa.generate(fast, prompt, n + 1))
        found = medians(
            {
                "ours": partial(token_median, fast, prompt, n),
                "plain": partial(token_median, lm, prompt, n),
                "theirs": theirs.seconds,
            },
            rounds,
        )
        said = "x speed, same tokens" if same else "x speed, TOKENS DIFFER"
        what = f"over transformers' static cache of {room}, after {length} tokens"
        yield what, found["theirs"] / found["ours"], said
        yield "the same without the packed layout", found["theirs"] / found["plain"], "x speed"


class StaticLoop:
    """Greedy decoding with a model of transformers and its cache of fixed length."""

    def __init__(self, llama: Any, prompt: Tensor, n: int, room: int) -> None:
        self.llama, self.prompt, self.n, self.room = llama, prompt, n, room

    @torch.inference_mode()
    def run(self) -> tuple[Tensor, float]:
        """Return the tokens, and the median seconds of those after the first."""
        from transformers import StaticCache

        cache = StaticCache(config=self.llama.config, max_cache_len=self.room)
        latest, tokens, times, seen = self.prompt, [], [], 0
        for _ in range(self.n + 1):
            where = torch.arange(seen, seen + latest.shape[1])[None]
            answer = self.llama(latest, past_key_values=cache, position_ids=where, logits_to_keep=1)
            seen += latest.shape[1]
            latest = answer.logits[:, -1].argmax(-1, keepdim=True)
            tokens.append(latest)
            times.append(clock())
        return torch.cat(tokens, 1), statistics.median(b - a for a, b in pairwise(times))

    def seconds(self) -> float:
        return self.run()[1]


def llama_weights(lm: wa.ArTransformer) -> dict[str, Tensor]:
    """Return the weights under Llama's names."""
    names = {
        "attention.wq": "self_attn.q_proj", "attention.wk": "self_attn.k_proj",
        "attention.wv": "self_attn.v_proj", "attention.wo": "self_attn.o_proj",
        "feed_forward.w1": "mlp.gate_proj", "feed_forward.w3": "mlp.up_proj",
        "feed_forward.w2": "mlp.down_proj", "attention_norm": "input_layernorm",
        "ffn_norm": "post_attention_layernorm", "tok_embeddings": "model.embed_tokens",
        "norm": "model.norm", "output": "lm_head",
    }  # fmt: skip
    found = {}
    for name, tensor in wa.convert.to_nvidia(lm.state_dict(), lm.config).items():
        stem = name.removesuffix(".weight")
        if stem.startswith("layers."):
            _, number, rest = stem.split(".", 2)
            found[f"model.layers.{number}.{names[rest]}.weight"] = tensor
        else:
            found[f"{names[stem]}.weight"] = tensor
    return found


def vllm(rounds: int) -> Iterator[Row]:
    """The same weights in vLLM's engine, one request at a time, in this process."""
    os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    from vllm import LLM, SamplingParams

    lm, length, n = model(VIDEO), 64, 16
    fast, prompt = wa.for_decoding(lm), prompt_of(lm, length)
    with TemporaryDirectory() as folder:
        write_served(lm, f"{folder}/served")
        engine = LLM(
            f"{folder}/served", skip_tokenizer_init=True, dtype="float32", block_size=32,
            max_model_len=512, max_num_seqs=1, enable_prefix_caching=False,
            kv_cache_memory_bytes=64 << 20,
        )  # fmt: skip
    asked = {"prompt_token_ids": prompt[0].tolist()}

    def ask(count: int) -> tuple[list[int], float]:
        sampling = SamplingParams(
            temperature=0.0, max_tokens=count, ignore_eos=True, detokenize=False
        )
        began = clock()
        (answer,) = engine.generate([asked], sampling, use_tqdm=False)
        return list(answer.outputs[0].token_ids), clock() - began

    same = ask(n)[0] == wa.generate(fast, prompt, n)[0].tolist()
    found = medians(
        {
            "ours": partial(token_median, fast, prompt, n),
            "theirs": lambda: (ask(n)[1] - ask(1)[1]) / (n - 1),
        },
        rounds,
    )
    said = "x speed, same tokens" if same else "x speed, TOKENS DIFFER"
    yield (
        f"over vLLM's engine, batch 1, after {length} tokens",
        found["theirs"] / found["ours"],
        said,
    )


def reference(rounds: int, total: int) -> Iterator[Row]:
    """A loop that does what the reference does, at the end of ``total`` tokens."""
    n = 3
    for what, settings in (("base", VIDEO), ("with text", TEXT)):
        lm = model(settings)
        context = None
        if lm.config.cross_every:
            context = torch.randn(1, 512, 1024, generator=torch.Generator().manual_seed(2))
        fast, slow = wa.for_decoding(lm), ReferenceLoop(lm)
        latest = prompt_of(lm, 1)
        with torch.inference_mode():
            cache = fast.new_cache(1, total, context)
            fill(cache, total - n)
        slow.take_over(cache, total)

        def ours() -> tuple[Tensor, float]:
            tokens, times, last = [], [clock()], latest  # noqa: B023 - called within this round
            with torch.inference_mode():
                for _ in range(n):
                    last = fast.step(last, cache).argmax(-1, keepdim=True)  # noqa: B023
                    tokens.append(last)
                    times.append(clock())
            cache.forget(n)  # noqa: B023
            return torch.cat(tokens, 1), statistics.median(b - a for a, b in pairwise(times))

        def theirs() -> tuple[Tensor, float]:
            return slow.decode(latest, n, context)  # noqa: B023

        same = torch.equal(ours()[0], theirs()[0])
        found = medians({"ours": lambda: ours()[1], "theirs": lambda: theirs()[1]}, rounds)
        said = "x speed, same tokens" if same else "x speed, TOKENS DIFFER"
        yield (
            f"{what}: over a loop like the reference's at {total} tokens",
            found["theirs"] / found["ours"],
            said,
        )


def fill(cache: Cache, used: int) -> None:
    """Pretend that so many tokens have been read: how long a step takes asks only how many."""
    generator = torch.Generator().manual_seed(3)
    for layer in cache.layers:
        for rows in (layer.keys, layer.values):
            rows.copy_(torch.randn(rows.shape, generator=generator))
        layer.used = used


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", choices=("floor", "transformers", "vllm", "reference"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    rounds, total = (1, 640) if args.quick else (args.rounds, 5120)
    parts = {
        "floor": lambda: floor(rounds),
        "transformers": lambda: transformers(rounds),
        "vllm": lambda: vllm(rounds),
        "reference": lambda: reference(rounds, total),
    }
    say(f"torch {torch.__version__}, 1 thread, processor time, medians of {rounds}\n")
    say("| what | figure | |\n| --- | --- | --- |")
    for name, part in parts.items():
        if args.only not in (None, name):
            continue
        try:
            for what, value, unit in part():
                say(f"| {what} | {value:.2f} | {unit} |")
        except ImportError as e:
            sys.stderr.write(f"{name}: left out, {e} (dependency group bench)\n")


if __name__ == "__main__":
    main()
