"""What vLLM's reasoning parsers make of texts.

Reads {parser: [folder of a tokenizer, [text, ...]]} from the file that is named, and
writes {parser: [[thinking, response], ...]} as its last line.
"""

import json
import sys
from pathlib import Path

from transformers import AutoTokenizer
from vllm.reasoning import ReasoningParserManager

answers = {}
for name, (folder, texts) in json.loads(Path(sys.argv[1]).read_text()).items():
    tokenizer = AutoTokenizer.from_pretrained(folder)
    make = ReasoningParserManager.get_reasoning_parser(name)
    answers[name] = [make(tokenizer).extract_reasoning(text, None) for text in texts]
print("\n" + json.dumps(answers))
