"""The line of docs/design.md over Ray. The only folder that imports ray; only the CLI imports it."""

import os

# read when ray is imported: its C++ side would write past our display
os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
