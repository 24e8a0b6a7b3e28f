// On a narrow screen one part of the stage is shown at a time.

/** Lets the tabs choose which part of the stage is shown. */
export function pagesOfNarrow(bar) {
  const tabs = [...bar.querySelectorAll('[role="tab"]')];

  function choose(tab) {
    for (const each of tabs) {
      each.setAttribute('aria-selected', String(each === tab));
      each.tabIndex = each === tab ? 0 : -1;
      document.getElementById(each.dataset.show).classList.toggle('is-shown', each === tab);
    }
  }

  for (const tab of tabs) tab.addEventListener('click', () => choose(tab));
  bar.addEventListener('keydown', (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    const chosen = tabs.findIndex((tab) => tab.tabIndex === 0);
    const next = tabs[(chosen + step + tabs.length) % tabs.length];
    choose(next);
    next.focus();
  });
  choose(tabs[0]);
}
