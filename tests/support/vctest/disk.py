# SPDX-License-Identifier: LGPL-2.1-or-later
"""A disk that two QEMUs share as over NFS: with QEMU's default locking, which lets only one have it."""
import socket
import subprocess
import tempfile

from .proc import wait_for
from .qmp import Qmp


def make_qcow2(path, size_bytes=16 << 20):
    """An empty one. QEMU itself makes it, since qemu-img may not be installed."""
    from .qemu import BINARY
    with tempfile.TemporaryDirectory() as tmp:
        server = socket.socket(socket.AF_UNIX)
        server.bind(f"{tmp}/qmp")
        server.listen(1)
        p = subprocess.Popen([BINARY, "-machine", "none", "-nodefaults", "-display", "none", "-chardev",
                              f"socket,id=q,fd={server.fileno()},server=on,wait=off", "-mon",
                              "chardev=q,mode=control"],
                             stdin=subprocess.DEVNULL, pass_fds=[server.fileno()])
        try:
            qmp = Qmp(f"{tmp}/qmp")
            _create(qmp, driver="file", filename=str(path), size=0)
            qmp.execute("blockdev-add", driver="file", filename=str(path), node_name="f")
            _create(qmp, driver="qcow2", file="f", size=size_bytes)
            qmp.execute("quit")
            qmp.close()
            p.wait()
        finally:
            server.close()
            p.kill()
            p.wait()
    return str(path)


def _create(qmp, **options):
    qmp.execute("blockdev-create", job_id="make", options=options)
    wait_for(lambda: qmp.execute("query-jobs")[0]["status"] == "concluded", 60, "the disk to be made")
    [job] = qmp.execute("query-jobs")
    assert "error" not in job, job
    qmp.execute("job-dismiss", id="make")


def shared_disk_options(path, more=""):
    """The second disk of the boot sector; `more`: further options of QEMU's -drive, as
    `,werror=stop`."""
    return ["-drive", f"file={path},format=qcow2,if=ide,index=1{more}"]
