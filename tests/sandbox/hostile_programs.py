"""Programs that try to get out of the sandbox.

Each starts with `PRELUDE`: `attempt(f, ...)` prints ESCAPED if `f` works, and `refused` if the machine
forbids it. Any other exception ends the program with status `error`, so that an attack with a typing error
in it is a failed test, not a wall that held.
"""

from dataclasses import dataclass

PRELUDE = """
import ctypes, errno, json, os, sys, time
world = json.load(sys.stdin)
libc = ctypes.CDLL(None, use_errno=True)

def attempt(attack, *arguments):
    try:
        result = attack(*arguments)
    except (OSError, MemoryError) as error:
        print("refused", type(error).__name__, getattr(error, "errno", None), flush=True)
        return None
    print("ESCAPED", result, flush=True)
    return result

def c(name, *arguments):
    result = getattr(libc, name)(*[ctypes.c_long(item) if type(item) is int else item for item in arguments])
    if result < 0:
        raise OSError(ctypes.get_errno(), name)
    return result

def read(path):
    with open(path, "rb") as file:
        return file.read(4096)
"""

ALL = frozenset({"namespaces", "namespaces-bare", "seccomp", "rlimits-only"})
WALLED = ALL - {"rlimits-only"}
FILTERED = frozenset({"namespaces", "seccomp"})
OPEN = frozenset({"rlimits-only"})
NONE: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Escape:
    """An attack, and where it fails."""

    held_by: frozenset[str]
    """The isolations in which no attempt may succeed. In one that is named nowhere it is not tried."""
    gets_through: frozenset[str]
    """Those in which it must succeed: so we know that the test would notice a missing wall."""
    code: str
    statuses: frozenset[str] = frozenset({"ok"})


# fmt: off
ESCAPES: dict[str, Escape] = {
    "reads its environment": Escape(ALL, NONE, """
print(dict(os.environ), os.environb)
environ = ctypes.POINTER(ctypes.c_char_p).in_dll(libc, "environ")
i = 0
while environ and environ[i] is not None:
    print("ESCAPED", environ[i])
    i += 1
"""),
    "reads the environment of other processes": Escape(WALLED, NONE, """
for pid in (world["parent"], os.getppid(), world["sibling"], world["zygote"], "self"):
    try:
        print(read(f"/proc/{pid}/environ"))
    except OSError:
        pass
"""),
    "reads a file outside": Escape(WALLED, OPEN, """
attempt(read, world["planted"])
"""),
    "reads a file outside through /proc": Escape(WALLED, OPEN, """
attempt(read, "/proc/self/root" + world["planted"])
attempt(read, "/proc/thread-self/root" + world["planted"])
"""),
    "reads a file outside by way of many parents": Escape(WALLED, OPEN, """
attempt(read, "/.." * 40 + world["planted"])
"""),
    "reads a file outside by its descriptor": Escape(WALLED, OPEN, """
attempt(lambda: os.read(c("open", world["planted"].encode(), 0), 99))
"""),
    "lists the machine's folders": Escape(WALLED, OPEN, """
def outside():
    names = [name for name in os.listdir("/") if name != "work"]
    if not names:
        raise OSError("nothing there")
    return names
attempt(outside)
"""),
    "asks for the size of a file outside": Escape(WALLED, OPEN, """
attempt(lambda: os.stat(world["planted"]).st_size)
"""),
    "reads the list of users": Escape(WALLED, OPEN, """
attempt(read, "/etc/passwd")
"""),
    "reads files of the kernel and of devices": Escape(ALL, NONE, """
for path in ("/dev/mem", "/dev/kmsg", "/dev/sda", "/dev/vda", "/proc/kcore", "/proc/1/mem"):
    attempt(read, path)
for path in ("/proc/sys/kernel/core_pattern", "/proc/sysrq-trigger", "/sys/kernel/uevent_helper", "/dev/tty"):
    attempt(os.open, path, os.O_WRONLY)
"""),
    "reaches memory and roots of processes through /proc": Escape(WALLED, NONE, """
for pid in (1, world["parent"], world["sibling"], world["zygote"], "self"):
    for name in ("mem", "maps", "root/etc/passwd", "cwd", "fd", "ns/net"):
        attempt(os.open, f"/proc/{pid}/{name}", os.O_RDONLY)
"""),
    "writes a file outside": Escape(WALLED, OPEN, """
attempt(lambda: open(world["folder"] + "/written", "w").write("x"))
"""),
    "changes folders and devices outside": Escape(WALLED, NONE, """
attempt(os.mkdir, "/escaped")
attempt(os.mknod, "device", 0o600 | 0o60000, os.makedev(8, 0))
attempt(os.mknod, world["folder"] + "/device", 0o600 | 0o20000, os.makedev(1, 1))
attempt(os.rename, world["planted"], world["folder"] + "/renamed")
attempt(os.unlink, world["planted"])
attempt(os.chmod, world["planted"], 0o777)
attempt(os.truncate, world["planted"], 0)
attempt(os.chmod, "/", 0o777)
attempt(os.rmdir, "/work")
attempt(os.rename, "/work", "/elsewhere")
"""),
    "follows its own links outside": Escape(ALL, NONE, """
for target, name in ((world["planted"], "link"), ("/", "root"), ("..", "up"), ("/proc/self/fd", "fds")):
    try:
        os.symlink(target, name)
    except OSError:
        print("refused")
attempt(read, "link")
attempt(read, "root" + world["planted"])
attempt(read, "up" + world["planted"])
attempt(os.listdir, "fds")
attempt(os.link, world["planted"], "hard")
"""),
    "walks up from a folder's descriptor": Escape(WALLED, NONE, """
def walk():
    fd = os.open(".", os.O_RDONLY)
    for _ in range(40):
        fd = os.open("..", os.O_RDONLY, dir_fd=fd)
    return os.read(os.open(world["planted"].lstrip("/"), os.O_RDONLY, dir_fd=fd), 99)
attempt(walk)
"""),
    "finds a descriptor that it should not have": Escape(ALL, NONE, """
for fd in range(3, 5000):
    try:
        os.dup(fd)
    except OSError:
        continue
    print("ESCAPED", fd)
    break
"""),
    "connects to a port of the machine": Escape(WALLED, OPEN, """
import _socket
attempt(lambda: _socket.socket(_socket.AF_INET, _socket.SOCK_STREAM).connect(("127.0.0.1", world["port"])))
"""),
    "connects to a named socket of the machine": Escape(WALLED, OPEN, """
import _socket
attempt(lambda: _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM).connect(world["unix"]))
"""),
    "connects to an abstract socket of the machine": Escape(WALLED, OPEN, """
import _socket
attempt(lambda: _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM).connect("\\0" + world["abstract"]))
"""),
    "sends packets": Escape(WALLED, NONE, """
import _socket
def send(family, kind, protocol, address):
    return _socket.socket(family, kind, protocol).sendto(b"x", address)
attempt(send, _socket.AF_INET, _socket.SOCK_DGRAM, 0, ("127.0.0.1", world["port"]))
attempt(send, _socket.AF_INET, _socket.SOCK_DGRAM, 0, ("192.0.2.1", 53))
attempt(send, _socket.AF_INET, _socket.SOCK_RAW, 1, ("127.0.0.1", 0))
attempt(send, _socket.AF_PACKET, _socket.SOCK_RAW, 0, ("lo", 0))
"""),
    "kills its sibling, its launcher and its zygote": Escape(WALLED, NONE, """
import signal
for pid in (world["sibling"], world["launcher"], world["zygote"]):
    attempt(os.kill, pid, signal.SIGKILL)
    attempt(os.killpg, pid, signal.SIGKILL)
    attempt(lambda: signal.pidfd_send_signal(os.pidfd_open(pid), signal.SIGKILL))
    attempt(c, "sigqueue", pid, signal.SIGKILL, 0)
"""),
    "signals its parent and everyone": Escape(WALLED, NONE, """
import signal
attempt(os.kill, world["parent"], signal.SIGCONT)
attempt(os.kill, os.getppid() or 3, signal.SIGCONT)
attempt(os.kill, -1, signal.SIGCONT)
"""),
    "has the kernel send a signal for it (F_SETOWN)": Escape(WALLED, NONE, """
F_SETOWN, F_SETOWN_EX = 8, 15
for pid in (world["sibling"], world["parent"]):
    for fd in (0, 1, 2):
        attempt(c, "fcntl", fd, F_SETOWN, pid)
        attempt(c, "fcntl", fd, F_SETOWN_EX, ctypes.byref((ctypes.c_int * 2)(1, pid)))
"""),
    "types into a terminal": Escape(ALL, NONE, """
TIOCSTI, TIOCSCTTY = 0x5412, 0x540E
for fd in (0, 1, 2):
    attempt(c, "ioctl", fd, TIOCSTI, ctypes.byref(ctypes.c_char(b"x")))
    attempt(c, "ioctl", fd, TIOCSCTTY, 0)
"""),
    "becomes root, or takes its rights": Escape(ALL, NONE, """
attempt(os.setuid, 0)
attempt(os.setresuid, 0, 0, 0)
attempt(os.setgid, 0)
attempt(os.setgroups, [0])
attempt(os.chroot, "/")
attempt(os.nice, -5)
attempt(os.setpriority, os.PRIO_PROCESS, 0, -5)
attempt(os.sched_setscheduler, 0, os.SCHED_FIFO, os.sched_param(50))
attempt(c, "sethostname", b"x", 1)
"""),
    "holds a right of root": Escape(ALL, NONE, """
header, rights = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
try:
    c("capget", ctypes.byref(header), ctypes.byref(rights))
except OSError:
    print("refused")
if any(rights):
    print("ESCAPED", list(rights))
"""),
    "raises its own limits": Escape(ALL, NONE, """
for what in range(16):
    pair = (ctypes.c_uint64 * 2)()
    c("getrlimit", what, ctypes.byref(pair))
    if pair[1] == 2**64 - 1:
        continue
    wanted = (ctypes.c_uint64 * 2)(pair[1] + 1, pair[1] + 1)
    attempt(c, "setrlimit", what, ctypes.byref(wanted))
"""),
    "mounts, traces and enters namespaces": Escape(WALLED, NONE, """
attempt(c, "mount", b"none", b"/", b"tmpfs", 0, None)
attempt(c, "mount", None, b"/", None, 32 | 4096, None)
attempt(c, "umount2", b"/work", 2)
attempt(c, "umount2", b"/", 2)
attempt(c, "pivot_root", b".", b".")
attempt(c, "setns", 0, 0)
room = ctypes.create_string_buffer(64)
vector = (ctypes.c_size_t * 2)(ctypes.addressof(room), 64)
for pid in (world["parent"], world["zygote"], os.getppid() or 3):
    attempt(c, "ptrace", 16, pid, 0, 0)
    attempt(c, "ptrace", 0x4206, pid, 0, 0)
    attempt(c, "process_vm_readv", pid, ctypes.byref(vector), 1, ctypes.byref(vector), 1, 0)
    attempt(os.sched_setaffinity, pid, [0])
"""),
    "looks out of namespaces of its own": Escape(WALLED, NONE, """
CLONE_NEWNS, CLONE_NEWUSER, CLONE_NEWNET, MS_BIND = 0x20000, 0x10000000, 0x40000000, 4096
try:
    c("unshare", CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWNET)
    c("mount", b"tmpfs", b"/work", b"tmpfs", 0, None)
    os.chdir("/work")
    os.mkdir("proc")
except OSError:
    print("refused")
attempt(c, "mount", b"proc", b"proc", b"proc", 0, None)
attempt(c, "mount", b"/dev/vda", b"proc", b"ext4", 0, None)
attempt(c, "umount2", b"/", 2)
attempt(read, world["planted"])
attempt(os.kill, world["sibling"], 0)
"""),
    "enlarges its pipes": Escape(FILTERED, NONE, """
F_SETPIPE_SZ = 1031
for fd in (0, 1, *os.pipe()):
    attempt(c, "fcntl", fd, F_SETPIPE_SZ, 1 << 20)
"""),
    "starts another program": Escape(WALLED, OPEN, """
attempt(os.execv, "/bin/echo", ["echo", "ESCAPED"])
"""),
    "starts a shell": Escape(WALLED, NONE, """
os.system("echo ESCAPED")
try:
    print(os.posix_spawn("/bin/echo", ["echo", "ESCAPED"], {}))
except OSError:
    print("refused")
"""),
    "starts a program from memory": Escape(FILTERED, NONE, """
attempt(lambda: os.execve(os.memfd_create("x"), ["x"], {}))
attempt(os.memfd_create, "x")
"""),
    "makes a process in each way there is": Escape(FILTERED, NONE, """
import _thread
attempt(os.fork)
attempt(os.forkpty)
attempt(c, "vfork")
attempt(c, "syscall", 56, 17, 0, 0, 0, 0)
attempt(c, "syscall", 56, 0x10000000 | 17, 0, 0, 0, 0)
attempt(c, "syscall", 435, ctypes.byref((ctypes.c_uint64 * 8)(0, 0, 0, 0, 17)), 64)
"""),
    "makes memory that it can run": Escape(FILTERED, NONE, """
attempt(c, "syscall", 9, 0, 4096, 7, 0x22, -1, 0)
page = libc.mmap
page.restype = ctypes.c_long
attempt(c, "mprotect", page(None, 4096, 3, 0x22, -1, 0), 4096, 5)
"""),
    "calls the kernel in ways that Python does not": Escape(FILTERED, NONE, """
calls = dict(
    io_uring_setup=425, userfaultfd=323, keyctl=250, add_key=248, request_key=249, bpf=321,
    perf_event_open=298, memfd_create=319, memfd_secret=447, pidfd_open=434, pidfd_getfd=438,
    process_vm_readv=310, process_vm_writev=311, ptrace=101, init_module=175, finit_module=313,
    kexec_load=246, unshare=272, setns=308, personality=135, name_to_handle_at=303, open_by_handle_at=304,
    iopl=172, ioperm=173, shmget=29, semget=64, msgget=68, mq_open=240, fanotify_init=300,
    inotify_init1=294, timerfd_create=283, eventfd2=290, signalfd4=289, epoll_create1=291, socket=41,
    socketpair=53, execve=59, execveat=322, prctl=157, arch_prctl=158, seccomp=317, kcmp=312, vmsplice=278,
    splice=275, tee=276, sendfile=40, mlock=149, mlockall=151, acct=163, swapon=167, quotactl=179,
    syslog=103, mount=165, umount2=166, move_mount=429, open_tree=428, fsopen=430, fsmount=432,
    mount_setattr=442, chroot=161, setuid=105, setsid=112, setpgid=109, capset=126, sched_setattr=314,
    ioprio_set=251, migrate_pages=256, move_pages=279, process_madvise=440, landlock_create_ruleset=444,
    modify_ldt=154, remap_file_pages=216, rt_sigqueueinfo=129, tkill=200, lookup_dcookie=212,
    clock_settime=227, adjtimex=159, uselib=134, vhangup=153, reboot_with_wrong_magic=169, timer_create=222,
    get_robust_list=274, io_setup=206, pkey_alloc=330, mincore=27,
)
page = ctypes.create_string_buffer(4096)
for name, number in calls.items():
    pointer = ctypes.addressof(page)
    result = libc.syscall(ctypes.c_long(number), *[ctypes.c_long(pointer)] * 6)
    if result != -1 or ctypes.get_errno() not in (errno.EPERM, errno.ENOSYS):
        print("ESCAPED", name, result, errno.errorcode.get(ctypes.get_errno()))
"""),
    "calls the kernel by its x32 numbers": Escape(FILTERED, NONE, """
libc.syscall(ctypes.c_long(0x40000000 | 39))
print("ESCAPED")
""", frozenset({"killed"})),
    "opens shared memory of the machine": Escape(WALLED, OPEN, """
attempt(c, "shmget", world["shared"], 4096, 0)
"""),
    "leaves something in shared memory": Escape(WALLED, NONE, """
attempt(os.open, "/dev/shm/left", os.O_CREAT | os.O_RDWR)
attempt(c, "shm_open", b"/left", os.O_CREAT | os.O_RDWR, 0o666)
"""),
    "forges the report of its end": Escape(ALL, NONE, """
import struct
forged = struct.pack("<QBBidd", 0, 1, 0, 0, 0.0, 0.0)
for fd in (*range(3, 1024), 0):
    for run_id in range(20):
        try:
            os.write(fd, struct.pack("<QBBidd", run_id, 1, 0, 0, 0.0, 0.0))
            print("ESCAPED", fd)
        except OSError:
            pass
sys.exit(3)
""", frozenset({"error"})),
}
# fmt: on

# Reads all memory near what it can name, page by page, through a pipe: EFAULT where there is none.
MEMORY_SCAN = """
import ctypes, os, re
libc = ctypes.CDLL(None, use_errno=True)
libc.sbrk.restype = ctypes.c_void_p
own = bytes(bytearray(b"TOKEN-0123456789abcdef").lower())
read_end, write_end = os.pipe()
found, pages = set(), 0
for middle in (id(object()), libc.sbrk(0), ctypes.addressof(ctypes.c_int.in_dll(libc, "opterr"))):
    start = (middle >> 12 << 12) - (1 << 25)
    for address in range(start, start + (1 << 26), 4096):
        if libc.write(write_end, ctypes.c_void_p(address), 4096) == 4096:
            pages += 1
            found.update(re.findall(b"token-[0-9a-f]{16}", os.read(read_end, 4096)))
print(pages > 1000, own in found, len(found - {own}))
"""
