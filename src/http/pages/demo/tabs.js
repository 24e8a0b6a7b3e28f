// Tabs. On a narrow screen they choose the one part of the stage that is shown.

/** Calls `move(1)` or `move(-1)` for the arrow keys in a list of tabs. */
export function onArrowKeys(bar, move) {
  bar.addEventListener('keydown', (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (step) move(step);
  });
}

/** Lets the tabs choose the part of the stage that is shown. */
export function tabsOfStage(bar) {
  const tabs = [...bar.querySelectorAll('[role="tab"]')];

  function choose(tab) {
    for (const each of tabs) {
      each.setAttribute('aria-selected', String(each === tab));
      each.tabIndex = each === tab ? 0 : -1;
      document.getElementById(each.dataset.show).classList.toggle('is-shown', each === tab);
    }
  }

  for (const tab of tabs) tab.addEventListener('click', () => choose(tab));
  onArrowKeys(bar, (step) => {
    const chosen = tabs.findIndex((tab) => tab.tabIndex === 0);
    const next = tabs[(chosen + step + tabs.length) % tabs.length];
    choose(next);
    next.focus();
  });
  choose(tabs[0]);
}
