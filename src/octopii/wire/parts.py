"""Answers that are more than a frame may hold: cut into replies with the same number, and put together again.

The calls of a group are answered together, and each answer is as long as the state machine makes it. All parts but the
last say that there is more. A single answer that fits no frame becomes an error in its place: the command was applied
all the same, and the others of its group are answered.
"""

from octopii.config import FRAME_OVERHEAD_BYTES
from octopii.wire.codec import Answer, ApplyFailedAnswer
from octopii.wire.frames import DEFAULT_MAX_FRAME_BYTES, FrameType, encode_frame
from octopii.wire.requests import ProposeAnswers, QueryAnswers, Reply, encode_reply

part_bytes = 4 << 20
"""Bytes of answers in one reply, one answer at least: well below a frame, so that other replies get between them."""

max_answer_bytes = DEFAULT_MAX_FRAME_BYTES - FRAME_OVERHEAD_BYTES
"""Bytes of one answer that goes to a client: what a frame holds where nobody has set it otherwise."""

answer_overhead_bytes = 16

TOO_LARGE = "AnswerTooLarge"
"""What stands for the name of an exception where an answer fits no frame."""


def encode_replies(replies: list[Reply]) -> list[bytes]:
    """Replies as frames, in order; long ones are cut."""
    frames: list[bytes] = []
    for reply in replies:
        payload = encode_reply(reply)
        if len(payload) > part_bytes and isinstance(reply, ProposeAnswers | QueryAnswers):
            frames += [encode_frame(FrameType.REPLY, encode_reply(part)) for part in cut_answers(reply)]
        else:
            frames.append(encode_frame(FrameType.REPLY, payload))
    return frames


def cut_answers(reply: ProposeAnswers | QueryAnswers) -> list[ProposeAnswers | QueryAnswers]:
    """The same answers, in parts."""
    runs: list[list[Answer]] = [[]]
    size = 0
    for answer in reply.answers:
        if isinstance(answer, bytes) and len(answer) > max_answer_bytes:
            text = f"the answer has {len(answer)} bytes, a client can be given {max_answer_bytes}"
            answer = ApplyFailedAnswer(TOO_LARGE, text)
        own = answer_overhead_bytes + (len(answer) if isinstance(answer, bytes) else len(encode_answer(answer)))
        if runs[-1] and size + own > part_bytes:
            runs.append([])
            size = 0
        runs[-1].append(answer)
        size += own
    last = len(runs) - 1
    return [type(reply)(reply.request_id, run, number < last) for number, run in enumerate(runs)]


def encode_answer(answer: Answer) -> bytes:
    """One answer as it stands in a reply."""
    return encode_reply(QueryAnswers(0, [answer]))
