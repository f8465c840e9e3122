"""The local shop: pages, options, purchases, WebShop's reward; and its server's pages by URL."""

import json
import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

import pytest

from sad_components.envs import EpisodeOver, make_environment
from sad_components.envs.webshop import Catalog, Goal, Product, load_goals, load_products
from sad_components.envs.webshop.reward import normalize_colour, purchase_reward
from sad_components.envs.webshop.server import read_page


@pytest.fixture
def env():
    env = make_environment("webshop")
    env.reset("sad-ws-01")
    return env


def walk(env, *actions):
    return [env.step(action) for action in actions]


def test_gold_script_buys_what_every_instruction_asks(env):
    for task in env.tasks():
        env.reset(task)
        done = False
        while not done:
            observation, reward, done, info = env.step(env.expert_turn().text.split("Action: ")[1])
        assert (reward, info["won"]) == (1.0, True), task
        assert observation == "Your score (min 0.0, max 1.0): 1"


def test_shipped_sample_is_what_is_said():
    assert (len(load_products()), len(load_goals())) == (30, 10)


def test_pages(env):
    assert env.reset("sad-ws-07") == (
        "Instruction: I need a plug and play usb c to hdmi adapter, and price lower than 30.00 "
        "dollars\n[Search]"
    )
    results = env.step("search[hdmi adapter]").observation
    assert results.startswith(
        "[Back to Search]\nPage 1 (Total results: 1)\n[SADE000002]\n"
        "USB C to HDMI Adapter, 4K\n$17.00"
    )
    env.step("click[back to search]")
    env.step("search[mug]")
    assert env.step("click[sadk000001]").observation == (
        "[Back to Search]\n[< Prev]\ncolor [sand][deep blue][moss green]\nsize [10 oz][14 oz]\n"
        "Stoneware Coffee Mug with Wide Handle\nPrice: $12.50\n[Description]\n[Features]\n[Buy Now]"
    )
    assert "A heavy mug" in env.step("click[Description]").observation
    assert env.step("click[< Prev]").observation.startswith("[Back to Search]\n[< Prev]\ncolor")
    assert env.step("click[Features]").observation.endswith("Glazed by hand\nKeeps heat")


def test_results_have_pages(env):
    first, second = walk(
        env, "search[color black white safe free resistant men women]", "click[Next >]"
    )
    assert "Page 1" in first.observation
    assert "[< Prev]" not in first.observation
    assert "Page 2" in second.observation
    assert (
        set(first.observation.split("\n")) & set(second.observation.split("\n"))
        == {
            "[Back to Search]",
            "[Next >]",
        }
        or "[Next >]" not in second.observation
    )
    assert env.step("click[< Prev]").observation == first.observation


@pytest.mark.parametrize(
    "action",
    ["", "buy", "click[]", "click[Buy Now]", "search[]", "click[SADK000001]", "think[hm]"],
)
def test_what_cannot_be_done_here(env, action):
    result = env.step(action)
    assert (result.observation, result.info["valid"]) == ("Invalid action!", False)


def test_no_search_without_a_search_bar(env):
    walk(env, "search[mug]")
    assert not env.step("search[mug]").info["valid"]


def buy(env, *options):
    walk(env, "search[stoneware coffee mug]", "click[SADK000001]")
    assert all(r.info["valid"] for r in walk(env, *(f"click[{o}]" for o in options)))
    return env.step("click[Buy Now]")


@pytest.mark.parametrize(
    ("options", "reward"),
    [
        ((), 2 / 4),  # attribute and price of (1 attribute + 2 options + 1)
        (("moss green",), 3 / 4),
        (("moss green", "14 oz"), 1.0),
        (("moss green", "10 oz"), 3 / 4),
        (("14 oz", "sand", "moss green"), 1.0),  # a later choice replaces an earlier one
        (("deep blue", "14 oz"), 3 / 4),
    ],
)
def test_options_decide_the_score(env, options, reward):
    result = buy(env, *options)
    assert result.reward == pytest.approx(reward)
    assert result.done
    assert result.info["won"] is (reward == 1.0)
    with pytest.raises(EpisodeOver):
        env.step("search[x]")


def product(**changes):
    base = {"asin": "A", "title": "Blue Wool Hat", "price": 10.0, "query": "hat"}
    return Product(**{**base, **changes})


@pytest.mark.parametrize(
    ("bought", "reward"),
    [
        (product(), 1 / 2),  # the price fits, the attribute does not
        (product(attributes=("Machine wash",)), 1.0),
        (product(description="You can machine wash it."), 1.0),
        (product(title="Hat, machine wash"), 1.0),
        (product(price=30.0, attributes=("machine wash",)), 1 / 2),
        # one title word of three in common: the type fits; another query alone does not matter
        (product(title="Straw Hat", query="x", attributes=("machine wash",)), 1.0),
        (product(title="Green Scarf", query="hat", attributes=("machine wash",)), 0.0),
    ],
)
def test_reward_by_its_parts(bought, reward):
    goal = Goal("g", "a hat", "A", ("machine wash",), (), 20.0)
    assert purchase_reward(bought, {}, goal, product())["reward"] == pytest.approx(reward)


def test_type_of_a_distant_product_halves_or_more():
    wanted = product(title="one two three four five six seven eight nine ten eleven", query="q")
    goal = Goal("g", "", "A", (), (), 20.0)

    def kind(title, **more):
        return purchase_reward(product(title=title, query="z", **more), {}, goal, wanted)["type"]

    assert kind("one two three") == 1.0
    assert kind("one two") == 0.5
    assert kind("one") == 0.1
    assert kind("twelve") == 0.0
    near = product(title=wanted.title, category="a › b", query="q")
    same = purchase_reward(product(title="one two", category="b › a", query="z"), {}, goal, near)
    assert same["type"] == 1.0


def test_no_reward_exceeds_1():
    goal = Goal("g", "", "A", (), ("red",), 20.0)
    bought = product(title="Red Blue Wool Hat")
    got = purchase_reward(bought, {"color": "red", "trim": "blue"}, goal, product())
    assert (got["options"], got["reward"]) == (1.0, 1.0)


@pytest.mark.parametrize(
    ("value", "wanted"), [("Deep Navy 3", "navy"), ("14 oz", "14 oz"), ("Sand", "sand")]
)
def test_colours(value, wanted):
    assert normalize_colour(value) == wanted


def test_admissible_actions_are_valid(env):
    for prefix in ([], ["search[mug]"], ["search[mug]", "click[SADK000001]"]):
        env.restore("sad-ws-01", prefix)
        actions = env.admissible()
        assert actions
        for action in actions:
            env.restore("sad-ws-01", prefix)
            assert env.step(action).info["valid"], action


def test_search_ranks_by_words():
    catalog = Catalog(load_products())
    assert catalog.search("cast iron skillet")[0].asin == "SADK000004"
    assert catalog.search("zzz") == []
    assert Catalog([product()]).search("hat")[0].asin == "A"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"asin": "A", "title": "x"}, r"p\.jsonl:1: .*no 'price'"),
        ({"asin": "A", "title": "x", "price": "cheap"}, "number of dollars; got 'cheap'"),
    ],
)
def test_rows_that_are_no_products(tmp_path, row, message):
    path = tmp_path / "p.jsonl"
    path.write_text(json.dumps(row) + "\n")
    with pytest.raises(ValueError, match=message):
        load_products(path)


def test_an_instruction_for_no_product(tmp_path):
    path = tmp_path / "g.jsonl"
    path.write_text(json.dumps({"id": "g", "instruction": "x", "asin": "nowhere"}) + "\n")
    with pytest.raises(ValueError, match="asks for nowhere, no product here"):
        make_environment("webshop", goals=str(path))


def test_prices_of_ranges():
    row = {"asin": "A", "title": "x", "price": "$1,009.50 to $2,000"}
    assert Product.from_row(row).price == 1009.5


def test_a_real_product_file(tmp_path):
    folder = os.environ.get("SAD_CORPORA")
    if not folder:
        pytest.skip("SAD_CORPORA is not set")
    source = Path(folder) / "webshop_products.jsonl"
    products = load_products(source)
    chosen = [p for p in products if p.options][:20]
    goals = tmp_path / "goals.jsonl"
    goals.write_text(
        "".join(
            json.dumps(
                {
                    "id": p.asin,
                    "instruction": p.title,
                    "asin": p.asin,
                    "options": {name: values[0] for name, values in p.options.items()},
                    "price_upper": p.price + 10,
                }
            )
            + "\n"
            for p in chosen
        )
    )
    env = make_environment("webshop", products=str(source), goals=str(goals))
    for task in env.tasks():
        env.reset(task)
        done = False
        while not done:
            _, reward, done, _ = env.step(env.expert_turn().text.split("Action: ")[1])
        assert reward == 1.0, task


# -- a WebShop server ----------------------------------------------------------------------------

SEARCH = """<html><head><title>WebShop</title><script>var x = "hidden";</script></head><body>
<div id="instruction-text"><h4>Instruction:<br>Buy a red mug.</h4></div>
<form><input type="text"><button type="submit" class="btn">Search</button></form></body></html>"""
RESULTS = """<body><button class="btn">Back to Search</button><h3>Page 1 (Total results: 1)</h3>
<button class="btn">Next ></button>
<h4><a class="product-link" href="/item_page/x">B0MUG</a></h4><h4>A mug</h4><h5>$5.00</h5></body>"""
ITEM = """<body><button>Back to Search</button><button>&lt; Prev</button><h4>color</h4>
<input type="radio" id="r1" name="color" value="red"><label for="r1">red</label>
<input type="radio" id="r2" name="color" value="blue"><label for="r2">blue</label>
<h2>A mug</h2><button>Description</button><button>Buy Now</button></body>"""
DONE = """<body><h1>Thank you for shopping with us!</h1><h3 id="reward">Your score (min 0.0, max
1.0)<pre>{score}</pre></h3></body>"""


@pytest.fixture
def server():
    paths = []

    class Shop(BaseHTTPRequestHandler):
        def do_GET(self):
            path = unquote(self.path)
            paths.append(path)
            kind = path.split("/")[1]
            body = {"search_results": RESULTS, "item_page": ITEM}.get(kind, SEARCH)
            if kind == "done":
                body = DONE.format(score=1.0 if "'color': 'red'" in path else 0.5)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *_):
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Shop)
    threading.Thread(target=http.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{http.server_port}", paths
    http.shutdown()
    http.server_close()


@pytest.mark.parametrize(("colour", "score"), [("red", 1.0), ("blue", 0.5)])
def test_the_server_by_url(server, colour, score):
    url, paths = server
    env = make_environment("webshop_server", url=url)
    assert env.tasks(2) == ["fixed_0", "fixed_1"]
    first = env.reset("fixed_3")
    assert "hidden" not in first
    assert env.task_sentence == "Buy a red mug."
    results = walk(env, "search[red mug]", "click[B0MUG]", f"click[{colour}]", "click[Buy Now]")
    assert all(r.info["valid"] for r in results)
    assert (results[-1].reward, results[-1].done) == (score, True)
    assert results[-1].info["won"] is (score == 1.0)
    assert paths[0] == "/fixed_3"
    assert paths[1] == "/search_results/fixed_3/red+mug/1"
    assert paths[2] == "/item_page/fixed_3/B0MUG/red+mug/1/{}"
    assert paths[-1] == f"/done/fixed_3/B0MUG/{{'color': '{colour}'}}"
    env.close()


def test_markup_in_a_served_page_is_text():
    page = read_page("<p>&lt;button&gt;Buy Now&lt;/button&gt;</p><style>b</style>")
    assert page.text == "<button>Buy Now</button>"
    assert page.buttons == ()
