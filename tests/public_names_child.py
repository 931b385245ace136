"""Print, as JSON, what importing helpers imports, and what each public name adds.

`FastLanguageModel` is left out of the second: its import is the one of unsloth.
"""

import json
import sys


def packages() -> set[str]:
    return {name.partition(".")[0] for name in sys.modules} - sys.stdlib_module_names


before = packages()
import helpers  # noqa: E402

package = packages() - before
missing = [
    name
    for name in dir(helpers)
    if name != "FastLanguageModel" and not hasattr(helpers, name)
]
names = packages() - before
print(json.dumps({"package": list(package), "missing": missing, "names": list(names)}))
