"""Tests of the tests: plants one error at a time, builds, and sees the suite fail.

    python tests/mutants.py [NAME ...]        (`make mutants`: all of them, about 20 minutes)

Each mutant is one edit of a copy of the tree; the tests named beside it must fail on it and pass
without it. Exit status 1 if one survives. The working tree is never touched.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
WORK = ROOT / "build" / "mutants"
FOLDERS = ("cmake", "csrc", "python", "tests")
FILES = ("pyproject.toml", "CMakeLists.txt", "README.md", "LICENSE")


@dataclass(frozen=True)
class Mutant:
    name: str
    file: str
    old: str
    new: str
    tests: str  # files under tests/python, space separated
    options: str = ""


MUTANTS = (
    Mutant(
        "an agent's tokens are all taken as they come",
        "python/musespark/contemplating/drafts.py",
        "        yield from agent.take(most)\n",
        "        while agent.turn.ready and not agent.spoke:\n"
        "            yield from agent.take(most)\n",
        "test_contemplating.py",
    ),
    Mutant(
        "agents take their tokens in lumps where one may be stopped in the middle",
        "python/musespark/contemplating/drafts.py",
        " or self._threshold is not None or",
        " or",
        "test_contemplating.py",
    ),
    Mutant(
        "agents take their tokens in lumps past a stop string",
        "python/musespark/contemplating/drafts.py",
        "if self._has_stop_strings or",
        "if",
        "test_contemplating.py",
    ),
    Mutant(
        "an agent takes more in a lump than another has",
        "python/musespark/contemplating/drafts.py",
        "return max(1, min(agent.turn.tokens_waiting for agent in running))",
        "return max(1, max(agent.turn.tokens_waiting for agent in running))",
        "test_contemplating.py",
    ),
    Mutant(
        "a run of tokens goes on behind a stop string",
        "python/musespark/collectors.py",
        "(self._stops and not self.thinking)",
        "False",
        "test_collectors.py",
    ),
    Mutant(
        "a run of tokens goes on through what opens a call",
        "python/musespark/text/channels.py",
        "if self._spells or self.kind is None:",
        "if self.kind is None:",
        "test_text_syntaxes.py test_text_channels.py",
    ),
    Mutant(
        "what a thought is trimmed of is told where it came with text",
        "python/musespark/collectors.py",
        "one = self._tokens.options.logprobs or ",
        "one = ",
        "test_collectors.py",
    ),
    Mutant(
        "a round ends before the lead is certain",
        "python/musespark/contemplating/votes.py",
        "leader.weight > second + running",
        "leader.weight > second",
        "test_contemplating_votes.py",
    ),
    Mutant(
        "agents that are stopped keep what they wrote in vain",
        "python/musespark/contemplating/agents.py",
        '"thought_tokens": thought',
        '"thought_tokens": stats["thought_tokens"]',
        "test_contemplating.py",
    ),
    Mutant(
        "a workspace leaves the answer less than was asked for",
        "python/musespark/contemplating/run.py",
        "            if excess <= 0:\n",
        "            if True:\n",
        "test_contemplating.py",
    ),
    Mutant(
        "the closing message is beyond the budget",
        "csrc/decode/thinking.cc",
        "const std::int64_t free = left - kept;",
        "const std::int64_t free = left - 0 * kept;",
        "test_thinking.py",
    ),
    Mutant(
        "a character is cut where a thought ends",
        "csrc/decode/thinking.cc",
        "if (free <= kLongestRest && !unfinished()) rule.whole = true;",
        "",
        "test_thinking.py",
    ),
    Mutant(
        "after its budget a model thinks again",
        "csrc/decode/thinking.cc",
        "return left > 0 && !late ? rule : outside(params, tokens);",
        "return rule;",
        "test_thinking.py",
    ),
    Mutant(
        "rows of a block see only what stands before them",
        "csrc/model/drafter.cc",
        "static_cast<std::int32_t>(spec.block - 1 - r)",
        "static_cast<std::int32_t>(0 * r)",
        "test_drafter.py",
    ),
    Mutant(
        "a drafter's context keeps states of a draft that was wrong",
        "csrc/decode/draft_context.cc",
        "const std::int64_t count = (to - logged_from_) * drafter_.state_width();",
        "const auto count = static_cast<std::int64_t>(log_.rows.size());",
        "test_drafter_engine.py",
    ),
    Mutant(
        "signals of a draft's first token for all of it",
        "csrc/decode/speculation.cc",
        "const Job job{.entry = &entry, .row = rows + kept * vocab};",
        "const Job job{.entry = &entry, .row = rows};",
        "test_signals.py",
    ),
    Mutant(
        "the mean of fewer than twenty values as of twenty",
        "csrc/decode/signals.cc",
        "static_cast<double>(top.size())",
        "static_cast<double>(kConfidenceTop)",
        "test_signals.py",
    ),
    Mutant(
        "what a trial takes back stays among the recent signals",
        "csrc/decode/trials.cc",
        "  entry.thinking = trial.control;\n",
        "",
        "test_engine_one_result.py test_stopper.py",
    ),
    Mutant(
        "a stopper looks at the row before the sentence's end",
        "csrc/decode/trials.cc",
        "out.features = entry.thinking.features(thinking, row);",
        "out.features = {};",
        "test_stopper.py",
    ),
    Mutant(
        "means over all tokens that the ring has had",
        "csrc/decode/stopper.cc",
        "const std::size_t count = std::min(tokens, kRecentTokens);",
        "const std::size_t count = tokens;",
        "test_stopper.py",
    ),
    Mutant(
        "a hopeless thought is closed without its words",
        "csrc/decode/trials.cc",
        "const bool words = why == ThoughtStop::hopeless && thinking.fits_message(used);",
        "const bool words = false && used > 0 && thinking.watches();",
        "test_stopper.py",
    ),
    Mutant(
        "after its deadline a model thinks again",
        "csrc/decode/thinking.cc",
        "return left > 0 && !late ? rule",
        "return left > 0 ? rule",
        "test_thinking.py",
    ),
    Mutant(
        "an exit that loses nothing is premature",
        "python/musespark/lab/calibrate.py",
        "return ~self.may_end & self.right",
        "return ~self.may_end",
        "test_lab_calibrate.py",
    ),
    Mutant(
        "a problem scores all of its borders",
        "python/musespark/lab/calibrate.py",
        "problem.features[problem.premature]",
        "problem.features",
        "test_lab_calibrate.py",
    ),
    Mutant(
        "the next problem is not counted among the exchangeable ones",
        "python/musespark/lab/calibrate.py",
        "(len(scores) + 1) * (1 - rate)",
        "len(scores) * (1 - rate)",
        "test_lab_calibrate.py",
    ),
    Mutant(
        "thresholds of another model",
        "python/musespark/thinking/thresholds.py",
        '.get("model") != model',
        '.get("model") is None',
        "test_thresholds.py",
    ),
    Mutant(
        "evicted thoughts under a policy with trials",
        "python/musespark/requests.py",
        'usable = not adapted and given.get("thought_cache_tokens") is None',
        "usable = not adapted",
        "test_thresholds.py",
    ),
    Mutant(
        "a trial's answer is kept though the sequence samples another",
        "csrc/decode/trials.cc",
        "trial.tokens[static_cast<std::size_t>(place)] == token->token;",
        "true;",
        "test_trials.py",
    ),
    Mutant(
        "a trial's rows are kept under penalties",
        "csrc/decode/trials.cc",
        "!entry.sampler.has_penalties()",
        "true",
        "test_trials.py",
    ),
    Mutant(
        "what a trial samples is drawn for the place after",
        "csrc/decode/trials.cc",
        "static_cast<std::uint64_t>(place), choice",
        "static_cast<std::uint64_t>(place + 1), choice",
        "test_trials.py",
    ),
    Mutant(
        "a draft runs past the place of a trial",
        "csrc/decode/speculation.cc",
        "if (!right || wants_trial(entry)) break;",
        "if (!right) break;",
        "test_trials.py",
    ),
    Mutant(
        "a trial's rows are kept and counted as its own",
        "csrc/decode/trials.cc",
        "  entry.stats.trial_tokens -= kept;\n",
        "",
        "test_trials.py test_contemplating.py",
    ),
    Mutant(
        "a thought ends before its trial has",
        "csrc/decode/trials.cc",
        "if (!entry.trial) return false;",
        "return false;",
        "test_engine_one_result.py test_trials.py",
    ),
    Mutant(
        "penalties count tokens that were taken back",
        "csrc/decode/trials.cc",
        "  entry.sampler.restart(std::span(entry.tokens), entry.stats.prompt_tokens);\n",
        "",
        "test_engine_one_result.py test_trials.py",
    ),
    Mutant(
        "tokens are reported that a trial takes back",
        "csrc/decode/engine.cc",
        "const std::int64_t open = entry.trial ? entry.size() - entry.trial->at : 0;",
        "const std::int64_t open = 0;",
        "test_trials.py",
    ),
    Mutant(
        "a trial that preemption ended is not made again",
        "csrc/decode/trials.cc",
        "  entry.tried_at = entry.trial->tried_before;\n",
        "",
        "test_engine_one_result.py",
    ),
    Mutant(
        "any two trials agree",
        "csrc/decode/trials.cc",
        "entry.agreed = same ? entry.agreed + 1 : 1;",
        "entry.agreed = entry.agreed + 1;",
        "test_trials.py",
    ),
    Mutant(
        "headers count as the answer's tokens",
        "csrc/decode/thoughts.cc",
        "if (!heads) ++said_;",
        "++said_;",
        "test_thinking.py",
    ),
    Mutant(
        "a video of one frame taken for the image",
        "python/musespark/vision/processors/muse.py",
        "self.key(_VIDEO, *(",
        "self.key(*(",
        "test_seeing_video.py",
    ),
    Mutant(
        "a remembered embedding written as what was first encoded",
        "python/musespark/vision/eyes.py",
        "found.append((replace(embedding, outline=outline), where))",
        "found.append((embedding, where))",
        "test_seeing_video.py",
    ),
    Mutant(
        "a constraint is told every token again",
        "csrc/decode/step.cc",
        "      entry.constrained = entry.stats.completion_tokens;\n",
        "",
        "test_constraint_engine.py",
    ),
    Mutant(
        "what a constraint allows counts alone, without allowed ids",
        "csrc/decode/sampler.cc",
        "word(bits, at) & word(choice.allowed, at)",
        "(choice.allowed.empty() ? word(bits, at) : word(choice.allowed, at))",
        "test_sampler.py",
    ),
    Mutant(
        "a thought may end the turn",
        "python/musespark/turn_start.py",
        "frozenset(barred) - closes, more",
        "frozenset(), more",
        "test_grammar.py",
    ),
    Mutant(
        "an adapter's rows one off",
        "csrc/model/adapter.cc",
        "Rows in = product.in->slice(range.first, range.count);",
        "Rows in = product.in->slice(0, range.count);",
        "test_adapted_bits.py",
    ),
    Mutant(
        "rows of the last layer keep the places of the whole batch",
        "csrc/model/text_model.cc",
        "    adapted.keep(wanted);\n",
        "",
        "test_adapted_bits.py",
    ),
    Mutant(
        "a control vector for the batch's first rows",
        "csrc/model/adapter.cc",
        "residual.x + range.first * residual.ldx, residual.ldx, range.count",
        "residual.x, residual.ldx, range.count",
        "test_adapted_bits.py",
    ),
    Mutant(
        "the norm behind a control vector not made again",
        "csrc/ops/norm.cc",
        "kernels.rowwise.add(x, vector, residual.cols, x);\n               write_row(",
        "kernels.rowwise.add(x, vector, residual.cols, x);\n               if (false) write_row(",
        "test_steering_bits.py",
    ),
    Mutant(
        "a strength whose divergence was never measured",
        "python/musespark/steering.py",
        "return low, kl",
        "return high, kl",
        "test_steering.py",
    ),
    Mutant(
        "a base made with another adapter",
        "csrc/decode/schedule.cc",
        " && base.adapter == entry.adapter",
        "",
        "test_adapted_engine.py",
    ),
    Mutant(
        "rsLoRA's root forgotten",
        "python/musespark/weights/adapters.py",
        "math.sqrt(rank) if self.rank_stabilized else rank",
        "rank",
        "test_lora_golden.py test_lora_reader.py",
    ),
    Mutant(
        "order of AWQ's outputs",
        "python/musespark/weights/quantized/gptq.py",
        "np.array([0, 4, 1, 5, 2, 6, 3, 7])",
        "np.array([0, 2, 4, 6, 1, 3, 5, 7])",
        "test_quantized_golden.py",
    ),
    Mutant(
        "GPTQ's zero points without the borrow",
        "python/musespark/weights/quantized/gptq.py",
        "_ONES = {2: 0x55555555, 4: 0x11111111, 8: 0x01010101}",
        "_ONES: dict[int, int] = {}",
        "test_quantized_readers.py",
    ),
    Mutant(
        "scales taken for f16",
        "python/musespark/weights/quantized/linear.py",
        "if self._blocks_fit() and self._scales_fit():",
        "if self._blocks_fit():",
        "test_quantized_readers.py",
    ),
    Mutant(
        "wrong lane",
        "csrc/kernels/qmatmul/unpack_avx512.inl",
        "0x0f800f80, 0x0e800e80,",
        "0x0e800e80, 0x0f800f80,",
        "test_qmatmul_levels.py",
    ),
    Mutant(
        "swapped group",
        "csrc/kernels/qmatmul/unpack_avx512.inl",
        "return {sub_words(sub), sub_words(sub + kRowBlock)};",
        "return {sub_words(sub + kRowBlock), sub_words(sub)};",
        "test_qmatmul_levels.py",
    ),
    Mutant(
        "dropped bias",
        "csrc/kernels/qmatmul/avx512vnni.cc",
        "_mm512_set1_epi32(t.bias[c * t.groups + g])",
        "_mm512_setzero_si512()",
        "test_qmatmul_levels.py",
    ),
    Mutant(
        "half of the bias dropped",
        "csrc/kernels/qmatmul/few_avxvnni.inl",
        "bias[2 * m] + bias[2 * m + 1]",
        "bias[2 * m]",
        "test_qmatmul_levels.py",
    ),
    Mutant(
        "block scales of one half of the rows for both",
        "csrc/kernels/qmatmul/shared_avx2.inl",
        "scales[1] = block_scales(block + 8)",
        "scales[1] = block_scales(block)",
        "test_qmatmul_levels.py",
    ),
    Mutant(
        "specification: bias of the weights' rounding",
        "csrc/kernels/qmatmul/scalar.cc",
        "(sub < -127 ? -127 : sub) + 64) >> 7;",
        "(sub < -127 ? -127 : sub) + 63) >> 7;",
        "test_qmatmul_levels.py test_qmatmul_reference.py",
    ),
    Mutant(
        "a sub-scale of -128 as it stands",
        "csrc/kernels/qmatmul/unpack_avx2.inl",
        "_mm_set1_epi8(-127)",
        "_mm_set1_epi8(-128)",
        "test_qmatmul_levels.py",
    ),
    Mutant(
        "scales of the two halves exchanged",
        "csrc/kernels/qmatmul/amx.cc",
        "block[2 * g + 1], f);",
        "block[2 * g], f);",
        "test_qmatmul_levels.py",
    ),
    Mutant(
        "weights of AArch64 cut instead of rounded",
        "csrc/kernels/qmatmul/unpack_neon.inl",
        "vraddhn_high_s16(vraddhn_s16(p0, p0), p1, p1)",
        "vaddhn_high_s16(vaddhn_s16(p0, p0), p1, p1)",
        "test_core_digests.py",
    ),
    Mutant(
        "a pair's second row with the scales of its first",
        "csrc/kernels/qmatmul/i8mm.cc",
        "at.second = whole ? at.scale + all_groups : at.scale;",
        "at.second = whole ? at.scale : at.scale;",
        "test_core_digests.py",
    ),
    Mutant(
        "one exponent too many in a row",
        "csrc/formats/repack.cc",
        "kHalfLowest = -24",
        "kHalfLowest = -25",
        "test_repack.py",
    ),
    Mutant(
        "off-by-one window",
        "csrc/ops/attention.cc",
        "shape.window + 1)",
        "shape.window)",
        "test_model_reference.py test_families_engine.py",
    ),
    Mutant(
        "window pages given back too early",
        "csrc/cache/sequence.cc",
        "(table.first + gone + 1) * kPageTokens <= seen",
        "(table.first + gone) * kPageTokens <= seen",
        "test_cache.py test_model_bits.py test_model_reference.py",
    ),
    Mutant(
        "stale cache page",
        "csrc/cache/sequence.cc",
        "if (!open) length = page * kPageTokens;",
        "static_cast<void>(open);",
        "test_cache.py test_model_steps.py test_engine_one_result.py",
    ),
    Mutant(
        "wrong seed",
        "csrc/decode/sampler.cc",
        "random_uniform64(params_.seed, params_.stream, position)",
        "random_uniform64(params_.seed ^ 1, params_.stream, position)",
        "test_sampler.py",
    ),
    Mutant(
        "streams ignored",
        "csrc/decode/sampler.cc",
        "random_uniform64(params_.seed, params_.stream, position)",
        "random_uniform64(params_.seed, 0, position)",
        "test_sampler.py test_engine_one_result.py",
    ),
    Mutant(
        "stop string kept",
        "python/musespark/text/stops.py",
        "return text[:start]",
        "return text",
        "test_model.py test_engine_stop_strings.py",
    ),
    Mutant(
        "seeds of a batch swapped",
        "python/musespark/options.py",
        "return list(seed)",
        "return list(seed)[::-1]",
        "test_model.py",
    ),
    Mutant(
        "a zero-centred norm without its one",
        "python/musespark/families/muse_glimmer.py",
        "rms_centered",
        "rms",
        "test_families_engine.py test_families.py",
    ),
    Mutant(
        "stored q5_k: high bit of the wrong group",
        "csrc/formats/stored.cc",
        "bits_of(read_bytes(h + g % 2 * 16), g / 2, 1) << 4",
        "bits_of(read_bytes(h + g % 2 * 16), g / 2 ^ 1, 1) << 4",
        "test_stored.py",
    ),
    Mutant(
        "packing: ranges of levels that end at their borders",
        "csrc/formats/pack.inl",
        "(t + 114.25f)",
        "(t + 118.25f)",
        "test_formats.py",
    ),
    Mutant(
        "packing: rows of bytes zipped with the wrong ones",
        "csrc/formats/pack_moves.inl",
        "next[2 * i + 1] = zip_high(v[i], v[i + 8]);",
        "next[2 * i + 1] = zip_high(v[i + 8], v[i]);",
        "test_stored.py",
    ),
    Mutant(
        "packing: errors fed into the column before",
        "csrc/formats/pack_feedback.inl",
        "store(u, load(u) + missed * factor[j]);",
        "store(u, load(u) + missed * factor[j - 1]);",
        "test_packing_guides.py",
    ),
    Mutant(
        "calibration: products of the strip before",
        "csrc/calibrate/input_sums.cc",
        "turned + first * count",
        "turned + first / 2 * count",
        "test_calibration.py",
    ),
    Mutant(
        "an outline of another tokenizer.json",
        "python/musespark/text/tokenizer.py",
        " or rest_of(data) != self._rest",
        "",
        "test_text_outline.py",
    ),
    Mutant(
        "a packer's rows of the block before",
        "csrc/formats/pack.cc",
        "if (rows_ < kRowBlock) std::memset(tile_.data(), 0, tile_.size());",
        "",
        "test_formats.py",
    ),
    Mutant(
        "rows of Q and K as llama.cpp weaves them",
        "python/musespark/families/gguf.py",
        "return order.swapaxes(1, 2).reshape(rows)",
        "return order.reshape(rows)",
        "test_gguf_models.py",
    ),
    Mutant(
        "GGUF tensors that overlap",
        "python/musespark/weights/gguf.py",
        "if before is not None and entry.begin < before.end:",
        "if before is not None and entry.begin < before.begin:",
        "test_gguf_reader.py",
    ),
    Mutant(
        "experts: ties go to the higher index",
        "csrc/ops/experts.cc",
        "keys[i] > best ||",
        "keys[i] >= best ||",
        "test_experts.py",
    ),
    Mutant(
        "experts: the first score for all of a row's experts",
        "csrc/ops/experts.cc",
        "scale(y, weights_[at], e.width, y)",
        "scale(y, weights_[static_cast<std::size_t>(row * k)], e.width, y)",
        "test_model_reference.py",
    ),
    Mutant(
        "encoder: later tiles read the first queries",
        "csrc/ops/full_attention.cc",
        "tile(rows + at * ld + head * d",
        "tile(rows + head * d",
        "test_encoder.py",
    ),
    Mutant(
        "longrope: keys of the other factors are shared",
        "csrc/decode/schedule.cc",
        "base.short_rope == entry.short_rope",
        "true",
        "test_engine_longrope.py",
    ),
    Mutant(
        "prefixes: what is beside a pin's pages counts as kept by it",
        "csrc/cache/prefix_tree.cc",
        "  if (pool_.window(page_class) > 0) return;\n",
        "",
        "test_prefix_cache.py",
    ),
)


def copy_tree() -> Path:
    """A fresh copy of the sources, keeping times so that only edits are compiled again."""
    tree = WORK / "tree"
    shutil.rmtree(tree, ignore_errors=True)
    tree.mkdir(parents=True)
    for name in FOLDERS:
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in FILES:
        shutil.copy2(ROOT / name, tree / name)
    shared = ROOT.parent / "shared"
    if shared.is_dir() and not (WORK / "shared").exists():
        (WORK / "shared").symlink_to(shared)
    return tree


def install(tree: Path) -> None:
    shutil.rmtree(WORK / "site", ignore_errors=True)
    command = [
        sys.executable, "-m", "pip", "install", "--quiet", "--no-build-isolation", "--no-deps",
        "--target", str(WORK / "site"), f"--config-settings=build-dir={WORK / 'cmake'}", str(tree),
    ]  # fmt: skip
    subprocess.run(command, check=True)


def run_tests(tree: Path, mutant: Mutant) -> bool:
    """Whether the mutant's tests pass."""
    files = [f"tests/python/{name}" for name in mutant.tests.split()]
    missing = [name for name in files if not (tree / name).exists()]
    if missing:
        raise SystemExit(f"{mutant.name}: no such test {', '.join(missing)}")
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *files]
    environment = {**os.environ, "PYTHONPATH": str(WORK / "site")}
    done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True)
    if done.returncode not in (0, 1):
        raise SystemExit(
            f"{mutant.name}: pytest ended with {done.returncode}\n{done.stdout[-2000:]}"
        )
    return done.returncode == 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", help="part of a mutant's name; default: all")
    names = parser.parse_args().names
    chosen = [m for m in MUTANTS if not names or any(n in m.name for n in names)]
    tree = copy_tree()
    install(tree)
    suites = sorted({m.tests for m in chosen})
    for tests in suites:
        if not run_tests(tree, Mutant("unchanged", "", "", "", tests)):
            raise SystemExit(f"the unchanged tree fails {tests}")
    print(f"unchanged: {len(suites)} selections of tests pass", flush=True)
    survivors = []
    for mutant in chosen:
        start = time.perf_counter()
        path = tree / mutant.file
        source = path.read_text()
        if mutant.old not in source:
            raise SystemExit(f"{mutant.name}: {mutant.file} no longer holds {mutant.old!r}")
        path.write_text(source.replace(mutant.old, mutant.new))
        install(tree)
        survived = run_tests(tree, mutant)
        path.write_text(source)
        survivors += [mutant.name] * survived
        verdict = "SURVIVED" if survived else "killed"
        print(f"{verdict:<9}{mutant.name:<48}{time.perf_counter() - start:6.0f} s", flush=True)
    print(f"{len(chosen) - len(survivors)} of {len(chosen)} killed")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
