"""A batch with a bad seed on a vllm.LLM whose engine runs in a child process."""

import json
import os
import signal

if __name__ == "__main__":  # The engine's process imports this file.
    from helpers.loading import FastLanguageModel  # noqa: F401
    from helpers.models import TINY_THINKER_DIRECTORY

    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "1"
    from vllm import LLM

    from helpers.batch import run_batch

    llm = LLM(
        model=str(TINY_THINKER_DIRECTORY),
        dtype="float32",
        max_model_len=512,
        enforce_eager=True,
    )
    question = "What is 7 + 5?"
    own = [{"seed": "7"}, {"seed": 1.5}, {"seed": 2**64}, {"seed": 2**63}]
    own += [{"structured_outputs": {"regex": "[0-9]+"}}]
    own += [{"logit_bias": {"5": 1}}, {"stop": "is"}]
    prompts = [question] + [
        {"prompt": question, "sampling_params": {"max_tokens": 20, **one}}
        for one in own
    ]
    rows = run_batch(llm, prompts, {"temperature": 0.6}, progress=False)
    owner, greedy = llm.llm_engine.output_processor, {"temperature": 0}
    process_outputs = owner.process_outputs

    def interrupted(*args, **kwargs):
        owner.process_outputs = process_outputs
        os.kill(os.getpid(), signal.SIGINT)
        return process_outputs(*args, **kwargs)

    owner.process_outputs = interrupted
    try:
        run_batch(llm, [question] * 4, greedy, progress=False)
    except KeyboardInterrupt as error:
        finished = len(error.finished)
    again = run_batch(llm, [question], greedy, progress=False)
    print(
        json.dumps(
            {
                "rows": [[row.error, row.tokens] for row in rows],
                "finished": finished,
                "again": [row.response for row in again],
            }
        )
    )
