"""The walls around one program. Runs in the child only; a step that the kernel refuses raises OSError.

    launcher   enters a user namespace (unless root) and a process namespace
    zygote     enters an empty network and an empty, read-only root folder: it sees nothing of the machine
    program    gets all of these anew, a small folder in memory, a user id without rights, limits, the filter

So whatever a program breaks, it breaks inside namespaces that end with it; and when the zygote ends, the
kernel ends every program. Without namespaces, the user id, the limits and the filter stand alone.
"""

import contextlib
import itertools
import os
import resource
import signal
from collections.abc import Sequence
from dataclasses import dataclass

from rtr_ray.sandbox import seccomp
from rtr_ray.sandbox.libc import (
    CLONE_NEWIPC,
    CLONE_NEWNET,
    CLONE_NEWNS,
    CLONE_NEWPID,
    CLONE_NEWUSER,
    CLONE_NEWUTS,
    call,
    can_fork_into_namespace,
    drop_capabilities,
    fork_into,
    mount,
    prctl,
)
from rtr_ray.sandbox.types import MAX_SLOTS, Limits

ZYGOTE_FDS = 256
"""No descriptor of the zygote is higher than this, so closing up to here closes all."""

_INSIDE_ID = 1000  # what a program's user and group are called inside a user namespace
_PRIVATE = CLONE_NEWNS | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS

_MS_RDONLY, _MS_REMOUNT, _MS_REC, _MS_PRIVATE = 1, 32, 1 << 14, 1 << 18
_MS_BARE = 2 | 4 | 8  # MS_NOSUID, MS_NODEV, MS_NOEXEC
_MNT_DETACH = 2
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 1, 4, 24, 38

# Between the user ids that systemd gives to containers and the end of the positive 32-bit numbers: nobody's.
# Room for 64 of each of 2**22 processes, so that no two programs on the machine share one.
_IDS_EACH = MAX_SLOTS + 1  # the last one kills what the others leave
_HIGH_IDS = range(0x70000000, 0x80000000)
_RESERVED_IDS = range(65000, 65534)  # in a container that maps 65536 ids: what Debian reserves


def die_with_parent() -> None:
    """Have the kernel kill this process when its parent ends."""
    prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


@dataclass(frozen=True, slots=True)
class Walls:
    """What a launcher found out once, and every program passes through."""

    namespaces: bool
    user_namespace: bool
    """Whether the namespaces belong to a user namespace, as an ordinary user needs it."""
    seccomp: bool
    first_uid: int | None
    """Programs run as this user id + slot; None: as the user that we are."""
    proc_fd: int

    @classmethod
    def raise_up(cls, namespaces: bool, filtering: bool) -> "Walls":
        """Enter what the launcher must enter before it forks the zygote."""
        if filtering and not seccomp.supported():
            raise OSError(f"seccomp: no table of system calls for {os.uname().machine}")
        proc_fd = os.open("/proc", os.O_PATH | os.O_DIRECTORY)  # for the id maps, once /proc is out of sight
        first_uid = _first_uid(os.getpid())
        user_namespace = False
        if namespaces:
            if not can_fork_into_namespace():
                raise OSError(f"clone: its number is unknown for {os.uname().machine}")
            try:
                if first_uid is None:
                    raise PermissionError("no other user ids to give")
                call("unshare", CLONE_NEWPID)
            except PermissionError:
                if first_uid is not None:  # root, but not of the kind that may; then as one that is nobody
                    _become(first_uid)
                    prctl(_PR_SET_DUMPABLE, 1)  # lost with the id, and without it /proc/self is still root's
                _enter_user_namespace(proc_fd)
                call("unshare", CLONE_NEWPID)
                user_namespace, first_uid = True, None
        return cls(namespaces, user_namespace, filtering, first_uid, proc_fd)

    def move_in(self) -> None:
        """Take the zygote out of sight of the machine, or at least to a folder where nothing is or can be."""
        if self.namespaces:
            call("unshare", _PRIVATE)
            call("sethostname", b"sandbox", 7)
            _empty_the_root()
            for pid in (1, 2) if self.seccomp else ():  # all that a program has there; built once and kept
                seccomp.build(files=True, pid=pid)
        else:
            _enter_a_removed_folder()
        with contextlib.suppress(OSError):  # the list has ended, or an ordinary user has none to lose
            for capability in range(64):
                prctl(_PR_CAPBSET_DROP, capability)
        _limit(resource.RLIMIT_NOFILE, ZYGOTE_FDS)

    def fork(self) -> int:
        """Fork a program: as process 1 of its own process namespace, where there are namespaces."""
        return fork_into(CLONE_NEWPID) if self.namespaces else os.fork()

    def enter(self, slot: int, limits: Limits) -> None:
        """Step one, in the program's process: its own namespaces, folder and user id."""
        die_with_parent()
        os.setsid()
        with contextlib.suppress(OSError):  # when memory runs out, the program goes first, not an engine
            _write_proc(self.proc_fd, "oom_score_adj", b"1000")
        uid = _INSIDE_ID if self.first_uid is None else self.first_uid + slot
        if self.namespaces:
            call("unshare", _PRIVATE)
            folder = f"size={limits.file_bytes},nr_inodes=64,mode=700,uid={uid},gid={uid}"
            mount(b"tmpfs", b"/work", b"tmpfs", _MS_BARE, folder.encode())
            os.chdir("/work")
        if self.user_namespace:
            # An inner user namespace: whatever the program could become in it owns none of the others.
            _enter_user_namespace(self.proc_fd)
        elif self.first_uid is not None:
            _become(uid)

    def lock(self, limits: Limits, keep_fds: Sequence[int]) -> None:
        """Step two, once per process of the program: limits, no rights, descriptors 0 to 2 and these only."""
        for before, after in itertools.pairwise((2, *sorted(keep_fds), ZYGOTE_FDS)):
            os.closerange(before + 1, after)
        _limit(resource.RLIMIT_AS, limits.memory_bytes)
        _limit(resource.RLIMIT_CPU, limits.cpu_s)
        _limit(resource.RLIMIT_FSIZE, limits.file_bytes)
        # It counts all processes and threads of a user. Without namespaces an ordinary user's own are among
        # them, so there it can only say: no further one.
        shared = not self.namespaces and self.first_uid is None
        _limit(resource.RLIMIT_NPROC, 1 if shared else limits.processes)
        _limit(resource.RLIMIT_NOFILE, 64)
        _limit(resource.RLIMIT_STACK, 8 << 20)
        _limit(resource.RLIMIT_SIGPENDING, 64)
        for nothing in ("CORE", "MEMLOCK", "MSGQUEUE", "NICE", "RTPRIO"):
            _limit(getattr(resource, f"RLIMIT_{nothing}"), 0)
        drop_capabilities()
        prctl(_PR_SET_NO_NEW_PRIVS, 1)
        prctl(_PR_SET_DUMPABLE, 0)  # no core file, and no other program of the same user may trace this one
        die_with_parent()  # again: the kernel forgets it when the user id changes
        os.umask(0o077)
        if self.seccomp:
            seccomp.install(seccomp.build(files=self.namespaces, pid=os.getpid()))

    def clear(self, slot: int) -> None:
        """Kill what a program left behind, where no namespace ends with it and no filter forbids to fork."""
        if self.namespaces or self.seccomp or self.first_uid is None:
            return
        pid = os.fork()
        if pid == 0:
            # One call kills all processes of the slot's user id, so that none can fork away from it. The
            # caller has that id only as its effective one, so they may not signal it.
            try:
                killer = self.first_uid + MAX_SLOTS
                os.setresuid(killer, self.first_uid + slot, killer)
                os.kill(-1, signal.SIGKILL)
            except ProcessLookupError:  # nothing was left
                pass
            finally:
                os._exit(0)
        os.waitpid(pid, 0)


def _first_uid(pid: int) -> int | None:
    """The first of 64 unused user ids that this process may switch to, a different one for each pid."""
    if os.geteuid() != 0:
        return None
    with open("/proc/self/status") as status:
        rights = next(int(line.split()[1], 16) for line in status if line.startswith("CapEff"))
    if rights & 0b11000000 != 0b11000000:  # CAP_SETGID, CAP_SETUID
        return None
    for ids in (_HIGH_IDS, _RESERVED_IDS):
        if _mapped("uid_map", ids) and _mapped("gid_map", ids):
            return ids[(pid * _IDS_EACH) % (len(ids) - _IDS_EACH + 1)]
    return None


def _mapped(name: str, ids: range) -> bool:
    with open(f"/proc/self/{name}") as lines:
        spans = [(int(first), int(count)) for first, _, count in map(str.split, lines)]
    return any(first <= ids.start and ids.stop <= first + count for first, count in spans)


def _become(uid: int) -> None:
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)


def _enter_user_namespace(proc_fd: int) -> None:
    uid, gid = os.geteuid(), os.getegid()
    call("unshare", CLONE_NEWUSER)
    for name, text in (
        ("setgroups", "deny"),
        ("uid_map", f"{_INSIDE_ID} {uid} 1"),
        ("gid_map", f"{_INSIDE_ID} {gid} 1"),
    ):
        _write_proc(proc_fd, name, text.encode())


def _write_proc(proc_fd: int, name: str, text: bytes) -> None:
    fd = os.open(f"self/{name}", os.O_WRONLY, dir_fd=proc_fd)
    try:
        os.write(fd, text)
    except OSError as error:
        raise OSError(error.errno, f"{name}: {error.strerror}") from error
    finally:
        os.close(fd)


def _empty_the_root() -> None:
    """Put an empty, read-only folder in memory in the place of /, with one folder /work."""
    mount(b"none", b"/", None, _MS_REC | _MS_PRIVATE)
    mount(b"tmpfs", b"/tmp", b"tmpfs", _MS_BARE, b"size=64k,nr_inodes=8,mode=755")
    os.mkdir("/tmp/work", 0o755)
    os.chdir("/tmp")
    call("pivot_root", b".", b".")
    call("umount2", b".", _MNT_DETACH)
    os.chdir("/")
    mount(b"tmpfs", b"/", None, _MS_BARE | _MS_REMOUNT | _MS_RDONLY)


def _enter_a_removed_folder() -> None:
    """A folder that was removed is empty, nothing can be made in it, and nothing is left to clean up."""
    for place in ("/dev/shm", "/tmp", "/var/tmp"):
        path = f"{place}/rtr-ray-sandbox-{os.getpid()}-{os.urandom(8).hex()}"
        try:
            os.mkdir(path, 0o755)
        except OSError as error:
            refused = error
            continue
        os.chdir(path)
        os.rmdir(path)
        return
    raise refused


def _limit(what: int, value: int) -> None:
    _, most = resource.getrlimit(what)
    if most != resource.RLIM_INFINITY:
        value = min(value, most)
    resource.setrlimit(what, (value, value))
