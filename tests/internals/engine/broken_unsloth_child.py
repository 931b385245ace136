"""Import the class where Unsloth's import fails: what does the error say?"""

import json
import sys
from pathlib import Path

folder = Path(sys.argv[1], "unsloth")
folder.mkdir()
(folder / "__init__.py").write_text("import sys\nsys.an_attribute_it_lacks\n")
sys.path.insert(0, sys.argv[1])
try:
    from helpers import FastLanguageModel  # noqa: F401
except ImportError as error:
    print(json.dumps({"kind": type(error).__name__, "said": str(error)}))
