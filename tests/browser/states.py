"""What a page seldom sees: keys, changes by others, refusals, many children, a server that is gone."""

import json

from browser import CONTROL
from page import check_loads, check_quiet, check_tree
from serving import ADMIN, claim, node_route, until

ALICE = "fr/sysadmin/name-line/alice"
BOB = "fr/sysadmin/name-line/bob"


def text(selector):
    return f"document.querySelector({json.dumps(selector)})?.textContent"


def choose(browser, name):
    browser.evaluate("document.getElementById('try-node').focus()")
    browser.type_over(name)
    browser.press("Tab")


def publish(server, name, adapter, **more):
    status, answer = server.ask(node_route(name), {"path": adapter, **more}, key=ADMIN,
                                method="PUT")
    claim(status in (200, 201), f"{name} is not published: {status} {answer}")
    return answer["generation"]


def wants_a_key(browser, server, token):
    """The field appears at 401, a wrong key is refused in words, the right one is for this tab."""
    check_loads(browser, server.url, token)
    claim(browser.evaluate("sessionStorage.length === 1 && localStorage.length === 0"),
          "the key is kept elsewhere than in the session's storage")
    browser.evaluate("sessionStorage.setItem('pleach-key', 'wrong')")
    browser.send("Page.navigate", url=server.url)
    browser.wait(f"{text('#key-note')}?.includes('refused')", "a wrong key is not named")
    check_quiet(browser, server.url, "a key")


def shows_a_key_its_part_alone(browser, server, token):
    """Of a tree where a key opens one leaf, that leaf is shown, and no other name."""
    browser.evaluate("sessionStorage.clear()")
    check_loads(browser, server.url, token)
    choose(browser, ALICE)
    browser.wait("document.querySelectorAll('#node-facts dt').length > 3", "the leaf has no facts")
    choose(browser, BOB)
    browser.wait(f"{text('#node-note')}.startsWith('404')", "another's leaf is not refused")
    claim(not browser.evaluate("document.querySelector('#tree').textContent.includes('bob')"),
          "another's leaf is in the tree")
    browser.evaluate("sessionStorage.clear()")


def finds_a_far_leaf(browser, server, way):
    """Arrow keys and Enter on 'more' lead to a leaf behind the first hundred."""
    check_loads(browser, server.url, None)
    check_tree(browser, way)


def shows_labels_as_text(browser, server):
    label, value = "<img src=x onerror=alert(1)>", "<b>\u202e"
    publish(server, "fr/labelled", "fr/sysadmin/name-line/bob", labels={label: value})
    choose(browser, "fr/labelled")
    browser.wait(f"{text('#node-facts')}.includes('onerror')", "a label is not shown")
    words = browser.evaluate(text("#node-facts"))
    claim(f"{label}<b>\\u{{202e}}" in words, f"a label is shown as {words!r}")
    claim(browser.evaluate("document.images.length") == 0, "a label became markup")


def rolls_back(browser, server):
    """After a question in the page; what has changed meanwhile is refused in words."""
    name, versions = "fr/rolled", "document.querySelectorAll('#versions li').length"
    first = publish(server, name, "fr/sysadmin/name-line/alice")
    publish(server, name, "fr/sysadmin/name-line/bob")
    # The key with which this page may change something.
    browser.evaluate(f"sessionStorage.setItem('pleach-key', {json.dumps(ADMIN)})")
    check_loads(browser, server.url, None)
    choose(browser, name)
    browser.wait(f"{versions} === 2", "there is no history")
    browser.evaluate("document.getElementById('history').open = true")
    ask = "document.querySelector('#versions li:last-child button')"
    yes = "document.querySelector('#versions button.main')"
    publish(server, name, "fr/sysadmin/name-line/alice", labels={"round": "2"})
    browser.evaluate(f"{ask}.click()")
    browser.wait(f"{yes} && document.activeElement.textContent === 'Leave it'", "nothing is asked")
    browser.evaluate(f"{yes}.click()")
    browser.wait(f"{text('#history-note')}.startsWith('409')", "the refusal is not shown")
    choose(browser, "fr")
    browser.wait(f"{versions} === 1", "fr has no history")
    choose(browser, name)
    browser.wait(f"{versions} === 3", "history is old")
    browser.evaluate(f"{ask}.click()")
    browser.evaluate(f"{yes}.click()")
    browser.wait(f"{text('#history-note')}.startsWith('Rolled back')", "no rollback")
    browser.wait(f"{versions} === 4", "no new generation")
    history = server.ask(node_route(name, "/history"))[1]["versions"]
    claim(history[0]["generation"] == first, f"the oldest of the history is {history[0]}")
    browser.evaluate("sessionStorage.clear()")


def shows_refusals(browser, server):
    check_loads(browser, server.url, None)
    choose(browser, "fr/nobody")
    browser.wait(f"{text('#node-note')}.startsWith('404')", "an unknown node is not named")
    choose(browser, ALICE)
    browser.wait(f"{text('#node-facts')}.includes('alice')", "the leaf has no facts")
    browser.evaluate("document.getElementById('try-prompt').value = 'x'")
    browser.evaluate("document.getElementById('try-tokens').value = 99999")
    browser.evaluate("document.getElementById('try-prompt').focus()")
    browser.press("Enter", CONTROL)
    browser.wait(f"{text('#answer-node .figures')}.startsWith('400: ')",
                 "a refused request is not shown")
    browser.wait("document.getElementById('try-stop').disabled", "Stop stays on")


def chats_at_the_root(browser, server):
    choose(browser, server.model)
    browser.evaluate("document.querySelector('[value=chat]').checked = true")
    browser.evaluate("document.getElementById('try-tokens').value = 8")
    browser.evaluate("document.getElementById('try-form').requestSubmit()")
    browser.wait(f"{text('#answer-node .figures')}.includes('8 tokens')", "no chat at the root")
    claim(browser.evaluate("document.getElementById('answer-parent').hidden"),
          "the root is shown beside a parent")


def connects_again(browser, server, serve_folder):
    """To another server at the same address, which has a folder and no history."""
    check_loads(browser, server.url, None)
    server.kill()
    browser.wait("!document.getElementById('lost').hidden", "a lost connection is not named")
    fresh = serve_folder(server.address)
    try:
        until(fresh.is_ready, "the second server is not ready")
        browser.wait("document.getElementById('lost').hidden", "the page does not come back")
        browser.wait("document.querySelectorAll('#tree [role=treeitem]').length > 1",
                     "the tree does not come back")
        choose(browser, ALICE)
        browser.wait("document.querySelectorAll('#node-facts dt').length > 1", "no facts")
        claim(browser.evaluate("document.getElementById('history').hidden"),
              "a folder is shown with a history")
    finally:
        fresh.stop()
