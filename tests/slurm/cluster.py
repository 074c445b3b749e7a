"""A SLURM of two nodes on this host, with daemons and files of its own. Needs root, slurm-wlm and munge."""

import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

DAEMONS = ("munged", "slurmctld", "slurmd")
CONFIGURATION = """ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SelectType=select/linear
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=2,bf_interval=2
ReturnToService=2
KillWait=10
MinJobAge=10
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={first} CPUs=2 RealMemory=500
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={second} CPUs=2 RealMemory=500
PartitionName=low Nodes=n1,n2 Default=YES PriorityTier=1 State=UP
PartitionName=high Nodes=n1,n2 PriorityTier=10 State=UP
"""


def is_installed() -> bool:
    """Whether the daemons are here, and this user may start them."""
    return os.geteuid() == 0 and all(shutil.which(name) for name in DAEMONS)


def free_ports(number: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(number)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


class Cluster:
    """Two nodes, n1 and n2, in the partitions low and high. ``environment`` is that of its clients."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.pending_since: dict[str, float] = {}
        munge = folder / "munge"
        for path in (munge, folder / "state", folder / "spool-n1", folder / "spool-n2"):
            path.mkdir(mode=0o755)
        port, first, second = free_ports(3)
        host = socket.gethostname()
        text = CONFIGURATION.format(host=host, folder=folder, port=port, first=first, second=second)
        (folder / "slurm.conf").write_text(text)
        (munge / "key").write_bytes(os.urandom(64))
        (munge / "key").chmod(0o600)
        self.environment = os.environ | {"SLURM_CONF": str(folder / "slurm.conf")}
        files = {name: munge / name for name in ("socket", "pid-file", "log-file", "seed-file")}
        words = [f"--{name}={path}" for name, path in files.items()] + [f"--key-file={munge / 'key'}"]
        self.daemons = [self._start("munged", "--foreground", "--force", *words)]
        self._wait_for(lambda: files["socket"].exists())
        self.daemons += [self._start("slurmctld", "-D", "-c")]
        self.daemons += [self._start("slurmd", "-D", "-c", "-N", node) for node in ("n1", "n2")]
        self._wait_for(lambda: self.ask("sinfo", "--noheader", "--format=%T %D") == "idle 2")

    def _start(self, *words: str) -> subprocess.Popen:
        with open(self.folder / f"{words[0]}-{len(list(self.folder.iterdir()))}.log", "wb") as log:
            return subprocess.Popen(words, env=self.environment, stdout=log, stderr=log)

    def _wait_for(self, condition, seconds: float = 60) -> None:
        until = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < until, "SLURM does not start"
            time.sleep(0.2)

    def ask(self, *words: str) -> str:
        """What a command of SLURM prints."""
        return subprocess.run(words, env=self.environment, capture_output=True, text=True, timeout=60).stdout.strip()

    def jobs(self) -> dict[str, tuple[str, str]]:
        """The state and the node of every job in the queue, by number."""
        lines = self.ask("squeue", "--noheader", "--array", "--format=%A %T %N").splitlines()
        return {words[0]: (words[1], " ".join(words[2:])) for words in map(str.split, lines)}

    def start_now(self) -> None:
        """Let jobs that were requeued start after some seconds, rather than in two minutes.

        A job that starts in the second in which it was requeued fails: its new credential counts as revoked.
        """
        now = time.monotonic()
        pending = [number for number, (state, _) in self.jobs().items() if state == "PENDING"]
        self.pending_since = {number: self.pending_since.get(number, now) for number in pending}
        for number, since in self.pending_since.items():
            if now - since > 3:
                self.ask("scontrol", "update", f"jobid={number}", "StartTime=now")

    def stop(self) -> None:
        """Stop the jobs, then the daemons."""
        self.ask("scancel", "--user=root")
        until = time.monotonic() + 30
        while self.jobs() and time.monotonic() < until:
            time.sleep(0.5)
        for daemon in reversed(self.daemons):
            daemon.send_signal(signal.SIGTERM)
        for daemon in reversed(self.daemons):
            try:
                daemon.wait(20)
            except subprocess.TimeoutExpired:
                daemon.kill()
