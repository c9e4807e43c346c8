"""What the frames between a worker and the engine hold."""

from __future__ import annotations

import msgspec

from andthen.engine.messages import Answer, Question

decode_question = msgspec.msgpack.Decoder(Question).decode
"""A frame that a worker sends: one question. Raises `msgspec.MsgspecError` for anything else."""
decode_answers = msgspec.msgpack.Decoder(list[Answer]).decode
"""A frame that the engine sends: all that one step has for one worker."""
