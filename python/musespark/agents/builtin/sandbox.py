"""Started by python.py as a program of its own: builds a sandbox around itself, runs a program.

Standard library only. Its input is one JSON object (:func:`musespark.agents.builtin.python._run`).
What fails before the program begins is written to ``failures``; nothing is run then.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import sys
import time
from typing import Any

_NEWNS, _NEWUTS, _NEWIPC = 0x00020000, 0x04000000, 0x08000000
_NEWUSER, _NEWPID, _NEWNET = 0x10000000, 0x20000000, 0x40000000
_RDONLY, _NOSUID, _NODEV, _BIND, _REC, _PRIVATE = 1, 2, 4, 4096, 16384, 1 << 18
_DETACH = 2
_PDEATHSIG, _NO_NEW_PRIVS = 1, 38
_SYS_MOUNT_SETATTR = 442  # on every architecture
_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
_AT_RECURSIVE, _ATTR_RDONLY, _ATTR_NOSUID, _ATTR_NODEV = 0x8000, 1, 2, 4
_USER = 1000  # inside
_TIMED_OUT = b"timed out"
_SECCOMP, _FILTER = 22, 2
_KILL, _REFUSE, _PASS = 0x80000000, 0x00050001, 0x7FFF0000  # refuse: EPERM
_LOAD, _IS, _AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06  # of classic BPF, on 32-bit words
_X32 = 0x40000000  # calls of another ABI on x86-64
# By machine: how the kernel names it, and the numbers of system calls.
_ARCHITECTURE = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_MEMORY = {  # shmget, semget, msgget, mq_open, memfd_create, memfd_secret: beyond every limit
    "x86_64": (29, 64, 68, 240, 319, 447),
    "aarch64": (194, 190, 186, 180, 279, 447),
}
_KERNEL = {  # add_key, request_key, keyctl, perf_event_open, bpf, userfaultfd, io_uring_setup
    "x86_64": (248, 249, 250, 298, 321, 323, 425),
    "aarch64": (217, 218, 219, 241, 280, 282, 425),
}
_FORK = {"x86_64": (56, 57, 58, 435), "aarch64": (220, 435)}  # clone, fork, vfork, clone3
_SOCKETS = {"x86_64": (41, 53), "aarch64": (198, 199)}  # socket, socketpair
# Families of sockets that lead nowhere inside: AF_UNIX, AF_INET, AF_INET6. Others are not bound to
# the network's namespace (AF_VSOCK reaches the host of a virtual machine) or speak to the kernel.
_FAMILIES = (1, 2, 10)
_NUMBER, _ARCH, _FIRST = 0, 4, 16  # in what a filter sees: the call, the first argument's low half
_LIBRARIES = ("/lib", "/lib32", "/lib64", "/libx32")

libc = ctypes.CDLL(None, use_errno=True)


def _checked(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def _mount(source: str, target: str, kind: str, flags: int, data: str = "") -> None:
    given = (source.encode(), target.encode(), kind.encode(), flags, data.encode())
    _checked(libc.mount(*given), f"mount {target}")


def _write(path: str, text: str) -> None:
    with open(path, "w") as file:
        file.write(text)


def leave_the_machine() -> None:
    """New namespaces, with no right outside them."""
    user, group = os.getuid(), os.getgid()
    spaces = _NEWUSER | _NEWNS | _NEWNET | _NEWPID | _NEWIPC | _NEWUTS
    _checked(libc.unshare(spaces), "new namespaces (unshare)")
    _write("/proc/self/setgroups", "deny")
    _write("/proc/self/uid_map", f"{_USER} {user} 1")
    _write("/proc/self/gid_map", f"{_USER} {group} 1")
    _write("/proc/sys/user/max_user_namespaces", "0")  # it makes no further ones


def build_root(root: str, prefix: str, files: int) -> None:
    """A root with the interpreter and the libraries, read-only, and an empty folder ``/work``."""
    _mount("none", "/", "", _REC | _PRIVATE)
    _mount("tmpfs", root, "tmpfs", _NOSUID | _NODEV, "size=1m,mode=755")
    _bind("/usr", root)
    for path in _LIBRARIES:
        if os.path.islink(path):
            os.symlink(os.readlink(path), root + path)
        elif os.path.isdir(path):
            _bind(path, root)
    if not os.path.exists(root + prefix):
        _bind(prefix, root)
    os.makedirs(f"{root}/etc", exist_ok=True)
    if os.path.exists("/etc/ld.so.cache"):
        with open("/etc/ld.so.cache", "rb") as file, open(f"{root}/etc/ld.so.cache", "wb") as to:
            to.write(file.read())
    for name in ("work", "old"):
        os.mkdir(f"{root}/{name}")
    os.chdir(root)
    number = _PIVOT_ROOT.get(os.uname().machine)
    if number is None:
        raise OSError(f"pivot_root is not known on {os.uname().machine}")
    _checked(libc.syscall(number, b".", b"old"), "pivot_root")
    os.chdir("/")
    _checked(libc.umount2(b"/old", _DETACH), "umount /old")
    os.rmdir("/old")
    _all_read_only()
    _mount("tmpfs", "/work", "tmpfs", _NOSUID | _NODEV, f"size={files},nr_inodes=1024,mode=777")
    os.chdir("/work")


def _bind(path: str, root: str) -> None:
    os.makedirs(root + path, exist_ok=True)
    _mount(path, root + path, "", _BIND | _REC)


def _all_read_only() -> None:
    attributes = (ctypes.c_uint64 * 4)(_ATTR_RDONLY | _ATTR_NOSUID | _ATTR_NODEV, 0, 0, 0)
    size = ctypes.sizeof(attributes)
    given = (-100, b"/", _AT_RECURSIVE, ctypes.byref(attributes), size)
    _checked(libc.syscall(_SYS_MOUNT_SETATTR, *given), "mount_setattr, read-only")


def limit(asked: dict[str, Any]) -> None:
    """The limits of the program's process."""
    seconds = int(asked["seconds"]) + 1
    for what, value in (
        (resource.RLIMIT_AS, asked["memory"]),
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_FSIZE, asked["files"]),
        (resource.RLIMIT_NPROC, asked["processes"] + 2),  # the two that wait for it
        (resource.RLIMIT_NOFILE, 64),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(what, (value, value))
    _checked(libc.prctl(_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")
    _refuse_calls(alone=asked["processes"] == 1)


class _Instruction(ctypes.Structure):
    _fields_ = (
        ("code", ctypes.c_uint16),
        ("then", ctypes.c_uint8),  # instructions to skip
        ("other", ctypes.c_uint8),
        ("value", ctypes.c_uint32),
    )


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_uint16), ("first", ctypes.POINTER(_Instruction)))


def _refuse_calls(*, alone: bool) -> None:
    """No system calls for memory that the limits do not count, for parts of the kernel that a
    program has no need of, for sockets of other families, and, ``alone``, for further processes
    and threads (the limit of which does not hold for root)."""
    machine = os.uname().machine
    refused = (*_MEMORY[machine], *_KERNEL[machine], *(_FORK[machine] if alone else ()))
    code = [
        (_LOAD, 0, 0, _ARCH),
        (_IS, 1, 0, _ARCHITECTURE[machine]),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER),
        (_AT_LEAST, 0, 1, _X32),
        (_RETURN, 0, 0, _KILL),
    ]
    for number in refused:
        code += [(_IS, 0, 1, number), (_RETURN, 0, 0, _REFUSE)]
    code += _refuse_families(_SOCKETS[machine])
    code.append((_RETURN, 0, 0, _PASS))
    instructions = (_Instruction * len(code))(*(_Instruction(*one) for one in code))
    program = _Program(len(code), instructions)
    _checked(libc.prctl(_SECCOMP, _FILTER, ctypes.byref(program), 0, 0), "seccomp")


def _refuse_families(calls: tuple[int, int]) -> list[tuple[int, int, int, int]]:
    """Instructions that let the next one have other calls, and sockets of the families."""
    allowed = [
        (_IS, len(_FAMILIES) - i, 0, family)  # over the others and the refusal
        for i, family in enumerate(_FAMILIES)
    ]
    check = [(_LOAD, 0, 0, _FIRST), *allowed, (_RETURN, 0, 0, _REFUSE)]
    return [(_IS, 1, 0, calls[0]), (_IS, 0, len(check), calls[1]), *check]


def first_process(asked: dict[str, Any]) -> int:
    """Process 1 of the sandbox: starts the program, and takes everything with it when it ends."""
    _checked(libc.prctl(_PDEATHSIG, signal.SIGKILL, 0, 0, 0), "parent's death")
    program = os.fork()
    if program == 0:
        try:
            limit(asked)
            null = os.pipe()[0]  # an empty input
            os.dup2(null, 0)
            program_and_options = [asked["python"], "-I", "-S", "-B", "-u", "-c", asked["code"]]
            os.execve(asked["python"], program_and_options, {})
        except BaseException as error:
            _fail(asked, error)
    end = time.monotonic() + asked["seconds"]
    while time.monotonic() < end:
        ended, status = os.waitpid(-1, os.WNOHANG)
        if ended == program:
            return _code(status)
        time.sleep(0.005)
    os.write(asked["failures"], _TIMED_OUT)
    return 1


def _code(status: int) -> int:
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def _fail(asked: dict[str, Any], error: BaseException) -> None:
    os.write(asked["failures"], f"{error}".encode())
    os._exit(125)


def main() -> None:
    asked = json.load(sys.stdin)
    try:
        os.set_inheritable(asked["failures"], False)
        leave_the_machine()
        build_root(asked["root"], asked["prefix"], asked["files"])
        first = os.fork()
    except BaseException as error:
        _fail(asked, error)
        raise
    if first == 0:
        try:
            os._exit(first_process(asked))
        except BaseException as error:
            _fail(asked, error)
    os.close(1)
    os.close(2)
    os._exit(_code(os.waitpid(first, 0)[1]))


if __name__ == "__main__":
    main()
