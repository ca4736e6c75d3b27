"""OpenVINO GenAI in an environment of its own: reads one JSON line per run, answers with one. Started by
`served.py`.

    python openvino_server.py FOLDER      # with heavy/ and light/ as transformers saved them

First it exports both text decoders (optimum-intel, float32) and their tokenizer. Then, per line:
{"mode": "plain" | "batched" | "draft", "prompts": [[ids]], "max_tokens": n, "temperature": t, "assistant": k}
answered with {"seconds": s, "tokens": [[ids]]}. One inference thread, float32.
"""

import json
import sys
import time
from pathlib import Path

import numpy as np
import openvino as ov
import openvino_genai as genai


def export(folder: Path) -> None:
    """The text decoder as optimum-intel writes it, in float32, beside its tokenizer."""
    from openvino_tokenizers import convert_tokenizer
    from optimum.intel import OVModelForCausalLM
    from transformers import AutoTokenizer

    out = folder.parent / f"{folder.name}-openvino"
    made = out / "openvino_model.xml"
    if made.exists() and made.stat().st_mtime > (folder / "model.safetensors").stat().st_mtime:
        return
    model = OVModelForCausalLM.from_pretrained(folder, export=True, load_in_8bit=False, compile=False)
    model.save_pretrained(out)
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    tokenizer.save_pretrained(out)
    for name, part in zip(
        ("openvino_tokenizer", "openvino_detokenizer"), convert_tokenizer(tokenizer, with_detokenizer=True), strict=True
    ):
        ov.save_model(part, out / f"{name}.xml")


class Pipelines:
    """Each kind of pipeline, made when it is first asked for."""

    def __init__(self, folder: Path) -> None:
        self.heavy, self.light = folder / "heavy-openvino", folder / "light-openvino"
        self.properties = {
            "INFERENCE_NUM_THREADS": 1,
            "INFERENCE_PRECISION_HINT": "f32",
            "KV_CACHE_PRECISION": "f32",
            "PERFORMANCE_HINT": "LATENCY",
        }
        self.made = {}

    def get(self, mode: str):
        if mode not in self.made:
            cache = genai.SchedulerConfig()
            cache.cache_size = 1
            cache.enable_prefix_caching = False
            if mode == "plain":
                self.made[mode] = genai.LLMPipeline(str(self.heavy), "CPU", ATTENTION_BACKEND="SDPA", **self.properties)
            elif mode == "batched":
                made = genai.ContinuousBatchingPipeline(str(self.heavy), cache, "CPU", self.properties)
                self.made[mode] = made
            else:
                draft = genai.draft_model(str(self.light), "CPU", **self.properties)
                self.made[mode] = genai.LLMPipeline(
                    str(self.heavy), "CPU", draft_model=draft, scheduler_config=cache, **self.properties
                )
        return self.made[mode]


def run(pipelines: Pipelines, ask: dict) -> dict:
    """One run."""
    config = genai.GenerationConfig()
    config.max_new_tokens = ask["max_tokens"]
    config.eos_token_id = ask["end"]
    config.stop_token_ids = {ask["end"]}
    config.apply_chat_template = False
    config.do_sample = ask["temperature"] > 0
    if ask["temperature"] > 0:
        config.temperature = ask["temperature"]
    if ask["mode"] == "draft":
        config.num_assistant_tokens = ask["assistant"]
    pipeline, said = pipelines.get(ask["mode"]), []
    tensors = [ov.Tensor(np.array([ids], dtype=np.int64)) for ids in ask["prompts"]]
    start = time.perf_counter()
    if ask["mode"] == "batched":
        results = pipeline.generate(tensors, [config] * len(tensors))
        said = [list(each.m_generation_ids[0]) for each in results]
    else:
        for tensor in tensors:
            inputs = genai.TokenizedInputs(tensor, ov.Tensor(np.ones(tensor.shape, dtype=np.int64)))
            said.append(list(pipeline.generate(inputs, config).tokens[0]))
    return {"seconds": time.perf_counter() - start, "tokens": [[int(t) for t in row] for row in said]}


def main() -> None:
    """Export, say which versions these are, then serve."""
    folder, out = Path(sys.argv[1]), sys.stdout
    sys.stdout = sys.stderr  # libraries print
    for name in ("heavy", "light"):
        export(folder / name)
    print(json.dumps({"openvino": ov.get_version(), "openvino_genai": genai.get_version()}), file=out, flush=True)
    pipelines = Pipelines(folder)
    for line in sys.stdin:
        try:
            answer = run(pipelines, json.loads(line))
        except (RuntimeError, ValueError, KeyError, TypeError) as error:  # told to whoever asked, who decides
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=out, flush=True)


if __name__ == "__main__":
    main()
