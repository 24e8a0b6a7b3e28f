// Runs before the page is drawn, so it is no module. The choice is stored in this browser; without one the system decides.
(() => {
  const KEY = 'rollcall-theme';
  const NEXT = { system: 'light', light: 'dark', dark: 'system' };
  const root = document.documentElement;

  function stored() {
    try {
      return localStorage.getItem(KEY) ?? 'system';
    } catch {
      return 'system'; // the browser has no storage for this page
    }
  }

  function apply(theme) {
    root.dataset.theme = theme in NEXT ? theme : 'system';
  }

  function label(button) {
    button.setAttribute('aria-label', `Colours: ${root.dataset.theme}. Change to ${NEXT[root.dataset.theme]}.`);
    button.title = `Colours: ${root.dataset.theme}`;
  }

  apply(stored());
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
