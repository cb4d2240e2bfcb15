"""One measurement of llama.cpp in a process of its own; needs the llama-cpp-python package and nothing of ours.

Prints one JSON line: prefill seconds and decode seconds per token, whole model with its head. The steps are those of
front_worker.py: prefill (head on the last position), then single tokens at the asked-for context lengths.
"""

from __future__ import annotations

import argparse
import json
import time

import llama_cpp


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--prefill", type=int, required=True)
    parser.add_argument("--contexts", type=int, nargs="+", required=True)
    parser.add_argument("--steps", type=int, required=True)
    arguments = parser.parse_args()

    llama_cpp.llama_backend_init()
    model_settings = llama_cpp.llama_model_default_params()
    model_settings.use_mmap = False  # repacked weights in anonymous memory, which can use huge pages
    model = llama_cpp.llama_model_load_from_file(arguments.model.encode(), model_settings)
    if not model:
        raise SystemExit("llama.cpp cannot load the model")
    settings = llama_cpp.llama_context_default_params()
    settings.n_ctx = max(arguments.prefill, *arguments.contexts) + 3 * arguments.steps + 64
    settings.n_batch = settings.n_ubatch = max(512, arguments.prefill)
    settings.n_threads = settings.n_threads_batch = arguments.threads
    context = llama_cpp.llama_init_from_model(model, settings)
    memory = llama_cpp.llama_get_memory(context)

    def decode(tokens: list[int]) -> float:
        array = (llama_cpp.llama_token * len(tokens))(*tokens)
        start = time.perf_counter()
        if llama_cpp.llama_decode(context, llama_cpp.llama_batch_get_one(array, len(tokens))) != 0:
            raise SystemExit("llama_decode failed")
        llama_cpp.llama_get_logits_ith(context, -1)  # waits for the result
        return time.perf_counter() - start

    prompt = [(7 * i) % 500 for i in range(max(arguments.prefill, *arguments.contexts))]
    prefill_s = []
    for _ in range(3):
        llama_cpp.llama_memory_clear(memory, True)
        prefill_s.append(decode(prompt[: arguments.prefill]))
    decode_s = {}
    for length in arguments.contexts:
        llama_cpp.llama_memory_clear(memory, True)
        decode(prompt[:length])
        steps = [decode([i % 500]) for i in range(arguments.steps + 3)]
        decode_s[str(length)] = steps[3:]
    print(json.dumps({"prefill_s": prefill_s[1:], "decode_s": decode_s}))


if __name__ == "__main__":
    main()
