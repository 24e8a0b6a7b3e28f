// Runs before the page is drawn, so it is no module. The choice is kept for this browser; none means the system's.
(() => {
  const KEY = 'rollcall-theme';
  const NEXT = { system: 'light', light: 'dark', dark: 'system' };
  const root = document.documentElement;

  function kept() {
    try {
      return localStorage.getItem(KEY) ?? 'system';
    } catch {
      return 'system'; // a browser that keeps nothing
    }
  }

  function apply(theme) {
    root.dataset.theme = theme in NEXT ? theme : 'system';
  }

  function label(button) {
    button.setAttribute('aria-label', `Colours: ${root.dataset.theme}. Change to ${NEXT[root.dataset.theme]}.`);
    button.title = `Colours: ${root.dataset.theme}`;
  }

  apply(kept());
  addEventListener('DOMContentLoaded', () => {
    const button = document.querySelector('[data-theme-toggle]');
    if (!button) return;
    label(button);
    button.addEventListener('click', () => {
      apply(NEXT[root.dataset.theme]);
      label(button);
      try {
        localStorage.setItem(KEY, root.dataset.theme);
      } catch {
        // The choice lasts until the page is closed.
      }
    });
  });
})();
