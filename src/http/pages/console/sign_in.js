import { h, text } from '../shared/dom.js';

/** The form for the token. `enter` receives the token once the server has accepted it. */
export function signIn(tryToken, enter) {
  const field = h('input', { class: 'field', id: 'token', type: 'password', required: true, autocomplete: 'off', spellcheck: 'false' });
  const message = h('p', { class: 'sign-in-error', role: 'alert' });
  const button = h('button', { type: 'submit', class: 'button button-strong' }, 'Enter');

  async function submit(event) {
    event.preventDefault();
    button.disabled = true;
    text(message, '');
    try {
      const given = field.value.trim();
      await tryToken(given);
      enter(given);
    } catch (error) {
      text(message, error.status === 401 ? 'That is not the console’s token.' : (error.message ?? 'The server cannot be reached.'));
      button.disabled = false;
      field.select();
    }
  }

  return h(
    'form',
    { class: 'card sign-in', on: { submit } },
    h('h2', {}, 'Sign in'),
    h('label', { for: 'token' }, 'The token that the server was started with, in ', h('code', { class: 'mono' }, '--console-token')),
    h('div', { class: 'sign-in-line' }, field, button),
    message,
    h('p', { class: 'muted small' }, 'The token is kept for this tab only, until you close it or sign out.'),
  );
}
