"""How the model that ships with andthen is made: corpus → tokenizer → training → GGUF → check.

No part of the package: nothing in `src/` imports it.
"""
