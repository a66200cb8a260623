"""Makes .venv with everything MediChat needs. Standard library only; old syntax, so that an old Python
can still say what is wrong. `python3 bootstrap.py EXTRA[,EXTRA…]` from the project's folder."""

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile

#: The Pythons for which everything that is installed comes as a wheel, the newest first.
SERVING = ((3, 14), (3, 13), (3, 12), (3, 11))
NEEDED_BYTES = 8 * 1000**3
#: Of a later install on its disk, and of any where pip unpacks.
NEEDED_AGAIN_BYTES = 1000**3
#: Compiles what is installed, on every core; what is left is compiled when it is imported.
COMPILE = (
    "import compileall, sysconfig; compileall.compile_dir(sysconfig.get_path('purelib'), quiet=2, workers=0)"
)
VENV = ".venv"
STAMP = os.path.join(VENV, "installed")


def fail(message):
    sys.stderr.write("medichat: " + message + "\n")
    sys.exit(1)


def fingerprint():
    """Changes when what should be installed changes."""
    digest = hashlib.sha256()
    for name in ("pyproject.toml", "constraints.txt"):
        with open(name, "rb") as file:
            digest.update(file.read())
    return digest.hexdigest()


def installed(version):
    """The extras that are installed as this fingerprint asks; none once another was begun to be installed."""
    try:
        with open(STAMP) as file:
            lines = file.read().split()
    except OSError:
        return set()
    return set(lines[1:]) if lines[:1] == [version] else set()


def usable(python, modules="sys, pip"):
    """Whether this Python can be installed into: half-made folders and Pythons of another age cannot."""
    program = "import %s; sys.exit(sys.version_info[:2] not in %r)" % (modules, SERVING)
    try:
        with open(os.devnull, "w") as nowhere:
            return subprocess.call([python, "-c", program], stdout=nowhere, stderr=nowhere) == 0
    except OSError:
        return False


def made_here():
    """Whether the folder lies where it was made: its programs, and where our own code is, are written into
    it as paths, so one that was moved or copied with the project runs nothing, or another project's code."""
    try:
        with open(os.path.join(VENV, "pyvenv.cfg")) as file:
            made = [line.split(" -m venv ", 1)[1].strip() for line in file if " -m venv " in line]
    except OSError:
        made = []
    if not made:
        return True  # made by another program, which does not say where
    place = made[0]
    while place.startswith("--"):
        place = place.partition(" ")[2]
    return os.path.realpath(place) == os.path.realpath(VENV)  # a link to one elsewhere is as good


def python_to_use():
    """The Python that makes the folder: this one or, when it does not serve, another on the PATH."""
    if sys.version_info[:2] in SERVING:
        return sys.executable
    # asked each: a name may stand for nothing, as pyenv's do
    found = [name for name in ("python%d.%d" % version for version in SERVING) if usable(name, "sys")]
    if not found:
        fail(
            "Python 3.11, 3.12, 3.13 or 3.14 is needed, this is %d.%d and none is found; "
            "install one and name it: make up PYTHON=python3.13" % sys.version_info[:2]
        )
    return found[0]


def run(command, trouble=None):
    """Wait for it; where it fails, end with one line that says the trouble, if it is one."""
    # in a session of its own: Ctrl-C comes here only, and is one line instead of that program's trace
    came = []
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [(number, signal.signal(number, lambda *_: came.append(1))) for number in numbers]
    process = subprocess.Popen(command, start_new_session=True)
    for number, handler in before:
        signal.signal(number, handler)
    try:
        if came:  # between its start and here
            raise KeyboardInterrupt
        if process.wait() != 0 and trouble:
            fail(trouble)
    except KeyboardInterrupt:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait()
        raise


def held(folder):
    # by an install that was stopped in its middle: what is there is not needed once more
    files = [os.path.join(where, name) for where, _, names in os.walk(folder) for name in names]
    return sum(os.lstat(path).st_size for path in files)


def check_room(whole):
    """End with one line where pip would run out of disk, which it tells in many.

    `whole`: what is installed stays.
    """
    if whole and os.path.exists(STAMP):
        free = shutil.disk_usage(VENV).free
        if free < NEEDED_AGAIN_BYTES:
            fail("the install needs 1 GB, but only %d MB are free on the disk of %s" % (free // 10**6, VENV))
    else:
        free = shutil.disk_usage(".").free
        if free + held(VENV) < NEEDED_BYTES:
            fail("the install needs up to 8 GB, but only %.1f GB are free on this disk" % (free / 1e9))
    try:
        folder = tempfile.gettempdir()
    except OSError:  # it writes a file in each that it knows of
        fail("there is no folder for temporary files that can be written to; set TMPDIR to one with 1 GB")
    free = shutil.disk_usage(folder).free
    if free < NEEDED_AGAIN_BYTES:
        fail(
            "the install unpacks into %s, where only %d MB are free of the 1 GB that it needs; free some, "
            "or set TMPDIR to another folder" % (folder, free // 10**6)
        )


def interrupt(*_):
    raise KeyboardInterrupt


def main():
    extras = sys.argv[1]
    python = os.path.join(VENV, "bin", "python")
    whole = usable(python) and made_here()
    maker = None if whole else python_to_use()
    version, wanted = fingerprint(), set(extras.split(","))
    there = installed(version) if whole else set()
    if wanted <= there:
        return
    check_room(whole)
    if not whole:
        run(
            [maker, "-m", "venv", "--clear", VENV],
            "cannot make %s; on Debian and Ubuntu: apt install python3-venv" % VENV,
        )
    if not there and os.path.exists(STAMP):
        with open(STAMP, "w"):  # from here on the packages are of no version, until all are of this one
            pass
    sys.stdout.write("Installing into %s; this takes a few minutes the first time.\n" % VENV)
    sys.stdout.flush()
    # pip would compile on one core
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile"]
    # torch on its own, first: on Linux the index's default build is gigabytes of CUDA
    index = torch_index()
    run(pip + index + ["-c", "constraints.txt", "torch"], "cannot install torch; is there a network?")
    run(
        pip + ["-c", "constraints.txt", "-e", ".[%s]" % extras],
        "cannot install the packages; the lines above say why (network, disk?)",
    )
    run([python, "-W", "ignore", "-c", COMPILE])
    try:
        with open(STAMP, "w") as file:
            file.write("".join(each + "\n" for each in [version] + sorted(there | wanted)))
    except OSError as error:
        fail("the packages are installed, but %s cannot be written: %s" % (STAMP, error.strerror))


def torch_index():
    """Where to get the CPU build of torch: unset means the ordinary index."""
    url = os.environ.get("MEDICHAT_TORCH_INDEX")
    return ["--index-url", url] if url else []


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, interrupt)
    signal.signal(signal.SIGHUP, interrupt)
    try:
        main()
    except KeyboardInterrupt:
        sys.stderr.write("medichat: stopped; run it again to go on\n")
        sys.exit(130)
