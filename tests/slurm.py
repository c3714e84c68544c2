"""A Slurm of one node on the loopback interface, from a distribution's packages: real daemons, without systemd, cgroups or accounting."""

import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch", "srun", "scancel", "squeue", "scontrol", "sinfo")

CONF = """
ClusterName=loop
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
# cred_expire is also how long a job that is queued again is held back
AuthInfo=socket={folder}/munge.socket,cred_expire=10
CredType=cred/munge
# all listen on 127.0.0.1 only: what the host's name resolves to
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
ReturnToService=2
SlurmdParameters=config_overrides
InactiveLimit=0
KillWait=2
UnkillableStepTimeout=30
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory=64000 State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


def lacking() -> str:
    """Why it cannot be started here; "" if it can."""
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing:
        return f"no {missing[0]} here: apt-get install slurmctld slurmd slurm-client munge"
    if os.geteuid() != 0:
        return "Slurm's daemons are started as root here"
    try:
        address = socket.gethostbyname(_host())
    except OSError:
        address = "unknown"
    return "" if address.startswith("127.") else f"the host's name is {address}, and Slurm would listen there"


def _host() -> str:
    return socket.gethostname().split(".")[0]


def _free_ports(n: int) -> list[int]:
    sockets = [socket.socket() for _ in range(n)]
    for s in sockets:
        s.bind(("127.0.0.1", 0))
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


class Slurm:
    """`environment` is what a process needs to use it. cpus: may exceed the real ones."""

    def __init__(self, folder: Path, cpus: int = 4):
        self.folder = folder
        self.environment = {"SLURM_CONF": str(folder / "slurm.conf")}
        self._daemons: list[subprocess.Popen[bytes]] = []
        for name in ("state", "spool"):
            (folder / name).mkdir(parents=True)
        folder.chmod(0o755)
        key = folder / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        conf = CONF.format(host=_host(), user="root", folder=folder, ports=_free_ports(2), cpus=cpus)
        (folder / "slurm.conf").write_text(conf)
        version = subprocess.run(["slurmd", "-V"], capture_output=True, text=True, check=True).stdout
        # before 23.02 slurmd loads a cgroup plugin even if nothing uses it; v1 only looks
        (folder / "cgroup.conf").write_text(f"CgroupPlugin={'cgroup/v1' if ' 22.' in version else 'disabled'}\n")

    def __enter__(self) -> "Slurm":
        files = [
            f"--{name}-file={self.folder}/munge.{end}"
            for name, end in (("key", "key"), ("pid", "pid"), ("seed", "seed"))
        ]
        log = f"--log-file={self.folder}/munged.log"
        self._start("munged", "--foreground", "--force", f"--socket={self.folder}/munge.socket", *files, log)
        self._until(lambda: (self.folder / "munge.socket").exists())
        self._start("slurmctld", "-D", "-f", self.environment["SLURM_CONF"])
        self._start("slurmd", "-D", "-f", self.environment["SLURM_CONF"], "-N", _host())
        self._until(lambda: self("sinfo", "--noheader", "--format=%t") == "idle")
        return self

    def __exit__(self, *_: object) -> None:
        if self("squeue", "--noheader"):
            self("scancel", "--partition=main")
            self("scancel", "--partition=main", "--signal=KILL", "--full")
            time.sleep(2)
        for daemon in reversed(self._daemons):
            daemon.send_signal(signal.SIGTERM)
            try:
                daemon.wait(20)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()

    def __call__(self, *command: str) -> str:
        """What one of its commands answers."""
        environment = os.environ | self.environment
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False).stdout.strip()

    def _start(self, *command: str) -> None:
        self._daemons.append(
            subprocess.Popen(
                command, env=os.environ | self.environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
        )

    def _until(self, holds: object, seconds: float = 60) -> None:
        end = time.monotonic() + seconds
        while not holds():  # type: ignore[operator]
            assert time.monotonic() < end, [p.read_text()[-1500:] for p in self.folder.glob("*.log")]
            time.sleep(0.2)
