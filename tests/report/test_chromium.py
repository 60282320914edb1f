"""The page in a real browser: it fits wide and narrow, its labels do not collide, and it is not blank."""

import functools
import json
import re
import shutil
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from experiments import manifest
from hack.cluster import deps
from hack.cluster.errors import ClusterError
from patience import HANG_SECONDS
from report import logs

from nas_api.experiment import NASExperiment
from nas_report import read, render

pytestmark = pytest.mark.slow

# What the page itself may not do: it has no script. Text that runs over other text, and what sticks out.
_MEASURE = """
<script>
const visible = element => element.getClientRects().length > 0;
const labels = [...document.querySelectorAll('.plot span, .heat .names span, .net text')].filter(visible);
const collisions = [];
const groups = new Map();
for (const label of labels) {
  const group = label.closest('.plot, .heat, svg.net');
  if (!groups.has(group)) groups.set(group, []);
  groups.get(group).push(label);
}
for (const group of groups.values())
  for (let i = 0; i < group.length; i++)
    for (let j = i + 1; j < group.length; j++) {
      const a = group[i].getBoundingClientRect(), b = group[j].getBoundingClientRect();
      const wide = Math.min(a.right, b.right) - Math.max(a.left, b.left);
      const tall = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
      if (wide > 1 && tall > 2.5) collisions.push(group[i].textContent + ' | ' + group[j].textContent);
    }
const small = [...document.querySelectorAll('main text, main span')].filter(visible)
  .filter(e => e.textContent.trim() && !e.classList.contains('sub') && e.getBoundingClientRect().height < 8)
  .map(e => e.textContent);
document.title = JSON.stringify({
  inner: window.innerWidth, scroll: document.documentElement.scrollWidth, collisions, small,
  empty: [...document.querySelectorAll('section')].filter(e => e.getBoundingClientRect().height < 20).length,
});
</script>
"""


@pytest.fixture(scope="module")
def chromium() -> str:
    try:
        deps.ensure(deps.BROWSER)
    except ClusterError as error:
        pytest.skip(f"Chromium is not here: {error}")
    found = shutil.which("chromium")
    assert found is not None
    return found


def browse(chromium: str, folder: Path, html: str, width: int, *options: str) -> str:
    """Return what Chromium prints when it opens the page in a window of this width."""
    file = folder / "page.html"
    file.write_text(html)
    words = [
        chromium, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
        "--host-resolver-rules=MAP * ~NOTFOUND",
        f"--user-data-dir={folder / 'profile'}", f"--window-size={width},2000", *options, file.as_uri(),
    ]  # fmt: skip
    return subprocess.run(words, capture_output=True, text=True, timeout=HANG_SECONDS, check=True).stdout


CASES: dict[str, tuple[Any, int, dict[str, Any]]] = {
    "ten": (logs.CONVOLUTIONAL, 10, {}),
    "arms": (logs.CONVOLUTIONAL, 700, {"control": "0.2", "losses": 0.02}),
    "many": (logs.CONVOLUTIONAL, 3300, {}),
    "crowded": (logs.BLOCKS, 60, {}),
    "dense": (logs.DENSE, 200, {}),
    "pairs": (logs.PAIRS, 200, {}),
    "cell": (
        logs.CELL,
        200,
        {"objective": {"metric": "perplexity", "goal": "Minimize", "reward": {"inverseSquare": {}}}, "finished": False},
    ),
}


@functools.cache
def page(case: str) -> str:
    """Return a case's page, which is made once for all widths."""
    space, samples, changes = CASES[case]
    history = read(record for each in logs.records(space, samples, **changes) for record in each)
    assert history is not None
    return render(history, NASExperiment.model_validate(manifest()), datetime(2026, 3, 4, tzinfo=UTC))


@pytest.mark.parametrize("width", [1400, 500])
@pytest.mark.parametrize("case", CASES)
def test_it_fits(chromium: str, tmp_path: Path, case: str, width: int) -> None:
    html = page(case)
    policy = re.search(r"<meta http-equiv[^>]*>", html)
    assert policy is not None
    measured = html.replace(policy[0], "").replace("</body>", f"{_MEASURE}</body>")
    title = re.search(r"<title>({.*?})</title>", browse(chromium, tmp_path, measured, width, "--dump-dom"), re.DOTALL)
    assert title is not None
    found = json.loads(title[1].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))
    assert found["scroll"] <= found["inner"] == width
    assert found["collisions"] == []
    assert found["small"] == []
    assert found["empty"] == 0
