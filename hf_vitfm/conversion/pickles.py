"""Looking through a pickle before it is read: short ones can call for much memory and endless time.

Nothing is built to find out; only the sizes of the objects on the stack are followed.
"""

import pickle
import pickletools
from typing import BinaryIO


# What torch lets a pickle call though weights never need it: it makes much memory of a few bytes, time and again.
_INFLATING = {"bytearray", "encode", "_rebuild_device_tensor_from_numpy", "_rebuild_device_tensor_from_cpu_tensor"}
# Checkpoints of the largest models, with their optimizer, have a tenth of these.
_MAX_STEPS = 10**6
_MAX_WORK = 10**7  # objects that are handled, those inside of tuples at every use: each is hashed where it is a key
_MAX_LONG_NUMBERS = 1000  # above 64 bits; unlike others, any number of them can be made to collide in a dictionary
_MARK = -1


class BombError(ValueError):
    """A pickle that is not worth reading."""


def check_pickle(file: BinaryIO) -> None:
    """Look through one pickle, up to the end of it.

    Args:
        file: open at its beginning.

    Raises:
        BombError: if it calls what no weights need, or for far more than it holds.
        pickle.UnpicklingError: if it is damaged.
    """
    try:
        _follow(file)
    except BombError:
        raise
    except (IndexError, KeyError, ValueError) as error:
        raise pickle.UnpicklingError(str(error)) from error


def _follow(file: BinaryIO) -> None:
    stack, memo = [], {}  # sizes
    work = long_numbers = 0
    for step, (opcode, argument, _) in enumerate(pickletools.genops(file)):
        if opcode.name == "GLOBAL" and argument.rpartition(" ")[2] in _INFLATING:
            raise BombError("calls that no weights need and that can fill the memory")
        if opcode.name.endswith("PUT"):
            memo[argument] = stack[-1]
            continue
        if opcode.name.endswith("GET"):
            stack.append(memo[argument])
            continue
        size = _pop(stack, [kind.name for kind in opcode.stack_before])
        work += 1 + size
        long_numbers += opcode.name == "LONG1" and argument.bit_length() > 64
        if step > _MAX_STEPS or work > _MAX_WORK or long_numbers > _MAX_LONG_NUMBERS:
            raise BombError("more steps than the largest model needs")
        for kind in opcode.stack_after:
            is_tuple = opcode.name.startswith("TUPLE")
            stack.append(_MARK if kind.name == "mark" else 1 + size * is_tuple)


def _pop(stack: list[int], kinds: list[str]) -> int:
    """Take what an instruction takes, of which the last is on top; returns its size."""
    size = 0
    while kinds:
        kind = kinds.pop()
        if kind == "stackslice":
            while stack[-1] != _MARK:
                size += stack.pop()
            continue
        found = stack.pop()
        if (found == _MARK) != (kind == "mark"):
            raise ValueError("an instruction takes what is not there")
        size += max(found, 0)
    return size
