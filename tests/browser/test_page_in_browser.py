"""report.html in headless Chromium: sorting, themes, width, printing, requests, errors and accessibility.

Needs the Debian packages chromium and chromium-driver, and selenium; AXE_CORE names axe-core's axe.min.js (from npm).
"""

import base64
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny import config, source

import distill
from distill.reporting.page import page
from distill.reporting.results import RunResults

webdriver = pytest.importorskip("selenium.webdriver")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not (shutil.which("chromium") and shutil.which("chromedriver")), reason="no Chromium"),
]
HOSTILE = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def browser() -> Iterator:
    """Chromium, which may take local files and keeps what it logs and requests."""
    options = webdriver.ChromeOptions()
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.binary_location = shutil.which("chromium")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    """The page of a run with a hostile class name, wrong labels and held-out images."""
    run = tmp_path_factory.mktemp("browser") / "run"
    data = source()
    named = data.__class__(**vars(data) | {"classes": (HOSTILE, "bee", "cat")})
    options = {"label_noise": 0.25, "val_size": 6, "alpha": [0.3, 0.9], "distillation_steps": 1, "seed": [1, 2]}
    distill.run(config(run, **options), source=named)
    (run / "report.html").write_text(page([RunResults.load(run)], run), encoding="utf-8")
    return run / "report.html"


@pytest.fixture
def shown(browser, file):
    """The browser with the page open on a wide screen, in the light theme."""
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    browser.get(file.as_uri())
    browser.execute_script("localStorage.clear()")
    browser.get(file.as_uri())
    return browser


def test_it_opens_without_errors_and_requests(shown, file):
    assert shown.get_log("browser") == []
    messages = [json.loads(entry["message"])["message"] for entry in shown.get_log("performance")]
    urls = {m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"}
    assert {url for url in urls if not url.startswith("data:")} <= {file.as_uri()}


def test_a_hostile_name_is_text(shown):
    assert HOSTILE in shown.execute_script("return document.body.innerText")
    assert shown.execute_script("return document.scripts.length") == 1


def test_a_table_sorts(shown):
    column = """
        const at = table => [...table.tHead.rows[0].cells].findIndex(cell => cell.textContent === "test accuracy");
        const table = [...document.querySelectorAll("table.sorts")].findLast(table => at(table) >= 0);
        const i = at(table);
        if (arguments[0]) table.tHead.rows[0].cells[i].firstChild.click();
        return [...table.tBodies[0].rows].map(row => Number(row.cells[i].dataset.v));"""
    before = shown.execute_script(column, False)
    assert shown.execute_script(column, True) == sorted(before)
    assert shown.execute_script(column, True) == sorted(before, reverse=True)
    assert shown.execute_script("return document.querySelectorAll('[aria-sort=descending]').length") == 1


def test_the_theme_switches_and_is_kept(shown, file):
    paper = "return getComputedStyle(document.body).backgroundColor"
    before = shown.execute_script(paper)
    shown.find_element("css selector", "header button").click()
    after = shown.execute_script(paper)
    assert before != after
    shown.get(file.as_uri())
    assert shown.execute_script(paper) == after


def test_values_are_shown_under_the_pointer(shown):
    marker = shown.find_element("css selector", "svg use[data-text]")
    webdriver.ActionChains(shown).move_to_element(marker).perform()
    tip = shown.find_element("id", "tip")
    assert tip.is_displayed()
    assert ", step 0: " in tip.text  # of one of the arms, which all begin at the teacher


def test_it_fits_a_phone(shown):
    phone = {"width": 375, "height": 812, "deviceScaleFactor": 1, "mobile": True}
    shown.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", phone)
    assert shown.execute_script("return document.documentElement.scrollWidth") <= 375


def test_it_prints(shown):
    pdf = base64.b64decode(shown.execute_cdp_cmd("Page.printToPDF", {"printBackground": True})["data"])
    assert pdf.startswith(b"%PDF")
    assert len(pdf) > 10_000
    shown.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    wide = "return [...document.querySelectorAll('table, svg')].filter(e => e.scrollWidth > innerWidth).length"
    assert shown.execute_script(wide) == 0
    shown.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})


def test_it_is_complete_without_javascript(shown, file):
    shown.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    shown.get(file.as_uri())
    assert len(shown.find_elements("css selector", "table")) > 5
    assert shown.find_elements("css selector", "button") == []
    shown.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})


@pytest.mark.skipif("AXE_CORE" not in os.environ, reason="AXE_CORE does not name axe.min.js")
def test_it_has_no_serious_accessibility_fault(shown):
    for _ in ("light", "dark"):
        shown.execute_script(Path(os.environ["AXE_CORE"]).read_text(encoding="utf-8"))
        found = shown.execute_async_script("axe.run().then(arguments[0])")
        assert len(found["passes"]) > 20
        faults = [
            f"{each['id']}: {each['help']}" for each in found["violations"] if each["impact"] in ("serious", "critical")
        ]
        assert faults == []
        shown.find_element("css selector", "header button").click()
