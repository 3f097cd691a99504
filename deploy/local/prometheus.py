"""A real Prometheus with mristream's rules: from PATH, or else from the Debian archive. And its `promtool`."""

from __future__ import annotations

import json
import re
import shutil
import time
import urllib.error
import urllib.parse
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml

from deploy.local import debian
from deploy.local.cache import cache_folder
from deploy.local.server import Report, Server, ServerError, free_port, open_local, silent

RULES = Path(__file__).parents[1] / "monitoring" / "rules"
# What the rules and dashboards call those whom it scrapes.
WORKERS, TRITON = "mristream-worker", "triton"
_PACKAGE = "prometheus"
_TIMEOUT_S = 10.0


def promtool() -> Path:
    """The program. Raises ServerError if it is neither here nor to be had."""
    return _program("promtool")


def whence() -> str:
    """Where Prometheus comes from when it is started, in words."""
    if found := shutil.which("prometheus"):
        return found
    if debian.is_unpacked(_PACKAGE):
        return str(_program("prometheus"))
    if debian.can_fetch():
        return "comes from the Debian archive when it is first wanted"
    return "not installed; only `mristream up --monitoring` needs it"


class Prometheus(Server):
    """Prometheus on 127.0.0.1, which evaluates the rules in the files `rules` (by default ours) and notifies nobody.

    `port` 0 takes a free one. Whom it scrapes, `scrape` says, at any time. Its data stay in `folder`, and are there
    again at the next start.
    """

    name = "prometheus"

    def __init__(
        self,
        folder: Path,
        *,
        port: int = 0,
        rules: Sequence[Path] | None = None,
        scrape_interval_s: float = 15.0,
        evaluation_interval_s: float | None = None,
    ) -> None:
        """Rules are evaluated as often as metrics are scraped, unless `evaluation_interval_s` says otherwise."""
        super().__init__(folder)
        self.port = port
        self._wanted_port = port
        self._rules = sorted(RULES.glob("*.yaml")) if rules is None else list(rules)
        self._scrape_interval_s = scrape_interval_s
        self._evaluation_interval_s = evaluation_interval_s or scrape_interval_s

    @property
    def url(self) -> str:
        """Address of its pages and its API."""
        return f"http://127.0.0.1:{self.port}"

    def scrape(self, job: str, urls: Iterable[str]) -> None:
        """Scrape from now on these addresses of `/metrics`, and no others, as the job `WORKERS` or `TRITON`.

        While it runs it takes up to about 5 s to notice.
        """
        hosts = [urllib.parse.urlsplit(url).netloc for url in urls]
        targets = self._targets(job)
        targets.parent.mkdir(parents=True, exist_ok=True)
        # It watches the file, and must never see half of it.
        fresh = targets.with_suffix(".new")
        fresh.write_text(json.dumps([{"targets": hosts}]))
        fresh.replace(targets)

    def provision(self, report: Report = silent) -> None:
        """Fetch it if it isn't here."""
        if shutil.which("prometheus") is None and not debian.is_unpacked(_PACKAGE):
            report(f"fetching Prometheus from the Debian archive, once, into {cache_folder()}…")
        _program("prometheus")

    def prepare(self) -> list[str]:
        """Write the configuration; the command."""
        if not (self._same_address and self.port):
            self.port = self._wanted_port or free_port()
        # A folder that isn't there when it starts is not watched.
        self._targets(WORKERS).parent.mkdir(parents=True, exist_ok=True)
        configuration = self.folder / "prometheus.yaml"
        configuration.write_text(yaml.safe_dump(self._configuration(), sort_keys=False))
        program = _program("prometheus")
        assets = program.parents[1] / "share" / "prometheus" / "web"
        return [
            str(program),
            f"--config.file={configuration}",
            f"--storage.tsdb.path={self.folder / 'data'}",
            f"--web.listen-address=127.0.0.1:{self.port}",
            "--enable-feature=exemplar-storage",
            # Debian's looks for its pages where the package would be installed.
            *([f"--web.local-assets={assets}"] if assets.is_dir() and not shutil.which("prometheus") else ()),
        ]

    def ready(self) -> bool:
        """Whether it answers queries."""
        try:
            with open_local(f"{self.url}/-/ready", _TIMEOUT_S):
                return True
        except OSError:
            return False

    def explanation(self, log: str) -> list[str]:
        """What it logged as errors."""
        return re.findall(r"level=error.*? (?:msg|err)=(.*)", log)[-8:] or super().explanation(log)

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The value of an expression now: `metric` (its labels) and `value` (time, value as text) of each sample.

        Raises ServerError where it is no PromQL, or no answer comes.
        """
        result: list[dict[str, Any]] = self._ask("query", {"query": expression})["result"]
        return result

    def alerts(self, state: str = "firing") -> list[dict[str, str]]:
        """Labels of the alerts that are `firing` or `pending`. Raises ServerError where no answer comes."""
        return [alert["labels"] for alert in self._ask("alerts", {})["alerts"] if alert["state"] == state]

    def exemplars(self, expression: str, last_s: float = 3600.0) -> list[dict[str, str]]:
        """Labels of the exemplars that the expression's series had in the last seconds. Raises ServerError as above."""
        now = time.time()
        period = {"start": str(now - last_s), "end": str(now)}
        found: Any = self._ask("query_exemplars", {"query": expression, **period})
        return [exemplar["labels"] for series in found for exemplar in series["exemplars"]]

    def _ask(self, what: str, parameters: dict[str, str]) -> Any:
        url = f"{self.url}/api/v1/{what}?{urllib.parse.urlencode(parameters)}"
        try:
            with open_local(url, _TIMEOUT_S) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as problem:
            reason = json.load(problem)["error"]
            raise ServerError(f"prometheus can't answer {parameters or what}: {reason}") from problem
        except OSError as problem:
            raise ServerError(f"prometheus doesn't answer: {problem}. Its log: {self.log}") from problem

    def _configuration(self) -> dict[str, Any]:
        # A scrape may not take longer than until the next one.
        return {
            "global": {
                "scrape_interval": _duration(self._scrape_interval_s),
                "scrape_timeout": _duration(min(self._scrape_interval_s, _TIMEOUT_S)),
                "evaluation_interval": _duration(self._evaluation_interval_s),
            },
            "rule_files": [str(path.resolve()) for path in self._rules],
            "scrape_configs": [
                {"job_name": job, "file_sd_configs": [{"files": [str(self._targets(job))]}]}
                for job in (WORKERS, TRITON)
            ],
        }

    def _targets(self, job: str) -> Path:
        return self.folder.resolve() / "targets" / f"{job}.json"


def _program(name: str) -> Path:
    found = shutil.which(name)
    return Path(found) if found else debian.unpacked(_PACKAGE) / "usr" / "bin" / name


def _duration(seconds: float) -> str:
    return f"{round(seconds * 1000)}ms"
