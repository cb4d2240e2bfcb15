"""Decode of several sequences at once by llama.cpp, in a process of its own; needs llama-cpp-python only.

Prints one JSON line: seconds per step by batch size. The steps are those of batch_decode_worker.py: every sequence gets
a prompt of its own, then each step decodes one token of every sequence of the batch and fetches the logits of all.
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
    parser.add_argument("--context", type=int, required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--batches", type=int, nargs="+", required=True)
    arguments = parser.parse_args()
    sequences, warm = max(arguments.batches), 3

    llama_cpp.llama_backend_init()
    model_settings = llama_cpp.llama_model_default_params()
    model_settings.use_mmap = False  # repacked weights in anonymous memory, which can use huge pages
    model = llama_cpp.llama_model_load_from_file(arguments.model.encode(), model_settings)
    if not model:
        raise SystemExit("llama.cpp cannot load the model")
    settings = llama_cpp.llama_context_default_params()
    # 256: llama.cpp rounds each sequence's cells up to that
    per_sequence = -(-(arguments.context + arguments.steps + warm) // 256) * 256
    settings.n_ctx = per_sequence * sequences
    settings.n_seq_max = sequences
    settings.kv_unified = False  # a stream of cells per sequence: none attends over the others' cells
    settings.n_batch = settings.n_ubatch = max(512, arguments.context)
    settings.n_threads = settings.n_threads_batch = arguments.threads
    context = llama_cpp.llama_init_from_model(model, settings)
    memory = llama_cpp.llama_get_memory(context)
    batch = llama_cpp.llama_batch_init(max(arguments.context, sequences), 0, 1)

    def decode(tokens: list[tuple[int, int, int]], logits: bool) -> float:
        """One call of llama_decode for (token, position, sequence) each; seconds."""
        batch.n_tokens = len(tokens)
        for i, (token, position, sequence) in enumerate(tokens):
            batch.token[i], batch.pos[i] = token, position
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, sequence
            batch.logits[i] = logits
        start = time.perf_counter()
        if llama_cpp.llama_decode(context, batch) != 0:
            raise SystemExit("llama_decode failed")
        if logits:
            for i in range(len(tokens)):
                llama_cpp.llama_get_logits_ith(context, i)  # waits for the result
        else:
            llama_cpp.llama_synchronize(context)
        return time.perf_counter() - start

    for sequence in range(sequences):
        decode([((7 * i + 3 * sequence) % 500, i, sequence) for i in range(arguments.context)], logits=False)
    step_s = {}
    for size in arguments.batches:
        times = []
        for step in range(arguments.steps + warm):
            position = arguments.context + step
            times.append(decode([((step + s) % 500, position, s) for s in range(size)], logits=True))
        step_s[str(size)] = times[warm:]
        for sequence in range(size):
            llama_cpp.llama_memory_seq_rm(memory, sequence, arguments.context, -1)
    print(json.dumps({"step_s": step_s}))


if __name__ == "__main__":
    main()
