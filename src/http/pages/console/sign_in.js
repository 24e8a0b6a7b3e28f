import { h, text } from '../shared/dom.js';

/** The form that asks for the token; `enter` gets it once the server has taken it. */
export function signIn(tryToken, enter) {
  const field = h('input', { class: 'field', id: 'token', type: 'password', required: true, autocomplete: 'off', spellcheck: 'false' });
  const told = h('p', { class: 'sign-in-told', role: 'alert' });
  const button = h('button', { type: 'submit', class: 'button button-strong' }, 'Enter');

  async function submit(event) {
    event.preventDefault();
    button.disabled = true;
    text(told, '');
    try {
      const given = field.value.trim();
      await tryToken(given);
      enter(given);
    } catch (error) {
      text(told, error.status === 401 ? 'That is not the console’s token.' : (error.message ?? 'The server cannot be reached.'));
      button.disabled = false;
      field.select();
    }
  }

  return h(
    'form',
    { class: 'card sign-in', on: { submit } },
    h('h2', {}, 'Who is asking?'),
    h('label', { for: 'token' }, 'The token that the server was started with, in ', h('code', { class: 'mono' }, '--console-token')),
    h('div', { class: 'sign-in-line' }, field, button),
    told,
    h('p', { class: 'muted small' }, 'It is kept for this tab alone, until you close it or sign out.'),
  );
}
