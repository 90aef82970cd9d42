// Words, numbers and small parts that every view uses. Text of others is always a text node, made visible first.
import { html, Component, useEffect, useRef, useState } from './vendor/standalone.module.js';

const language = 'en-GB';
const numbers = new Intl.NumberFormat(language);
const clock = new Intl.DateTimeFormat(language, { hour: '2-digit', minute: '2-digit', second: '2-digit' });
const day = new Intl.DateTimeFormat(language, { day: 'numeric', month: 'short', hour: '2-digit', minute: '2-digit' });

export const NONE = '–';
export const number = (value, digits = 0) =>
  value === null || value === undefined ? NONE : digits ? value.toFixed(digits) : numbers.format(Math.round(value));
export const rate = (value) => (value === null || value === undefined ? NONE : number(value, value > 0 && value < 10 ? 1 : 0));
export const counted = (count, noun) => `${number(count)} ${noun}${count === 1 ? '' : 's'}`;
export const gib = (bytes) => (bytes === null || bytes === undefined ? NONE : (bytes / 2 ** 30).toFixed(bytes < 2 ** 33 ? 1 : 0));
export const time = (when) => (when ? clock.format(new Date(when)) : NONE);
export const date = (when) => (when ? day.format(new Date(when)) : NONE);

export function size(bytes) {
  const units = ['B', 'kB', 'MB', 'GB', 'TB'];
  let step = 0;
  for (; bytes >= 1000 && step < 4; step++) bytes /= 1000;
  return `${bytes.toFixed(step && bytes < 100 ? 1 : 0)} ${units[step]}`;
}

export function lasting(seconds) {
  if (seconds === null || seconds === undefined) return NONE;
  if (seconds < 100) return `${Math.round(seconds)} s`;
  const minutes = Math.round(seconds / 60);
  if (minutes < 60) return `${minutes} min`;
  const hours = Math.floor(minutes / 60);
  return hours < 48 ? `${hours} h ${minutes % 60} min` : `${Math.round(hours / 24)} days`;
}

/** Characters that draw nothing, or turn the direction of others, as something that can be seen. */
export const visible = (text) => String(text ?? '').replace(
  /[\0-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u200e\u200f\u061c\u202a-\u202e\u2066-\u2069\ufeff]/g,
  (found) => `⟦U+${found.charCodeAt(0).toString(16).toUpperCase().padStart(4, '0')}⟧`);

/** Words of obatchd, in which commands stand between backticks. */
export const Said = ({ text }) => visible(text).split('`').map((part, at) => (at % 2 ? html`<code>${part}</code>` : part));

const LONG = 4000;
/** A text of a stranger, the beginning of it where it is long. */
export function Text({ text }) {
  const [whole, setWhole] = useState(false);
  const long = text.length > LONG;
  return html`<div class=${`text ${whole ? 'whole' : ''}`} dir="auto" tabindex=${whole ? 0 : undefined}>${visible(whole || !long ? text : text.slice(0, LONG))}${long && !whole && '…'}</div>
    ${long && html`<button class="small" aria-expanded=${whole} onClick=${() => setWhole(!whole)}>
      ${whole ? 'Show the beginning' : `Show all of it (${number(text.length)} characters)`}</button>`}`;
}

const SHAPES = { good: '●', busy: '◐', soft: '○', warn: '▲', bad: '■' };
const KINDS = {
  ok: 'good', ready: 'good', running: 'busy', done: 'good', PASS: 'good', succeeded: 'good', completed: 'good', active: 'busy', loading: 'busy',
  here: 'good', away: 'bad', leaving: 'warn', draining: 'warn',
  warn: 'warn', degraded: 'warn', paused: 'warn', PASS_LOW_STRESS: 'warn', INCONCLUSIVE: 'warn', backoff: 'warn', down: 'warn', 'with failures': 'warn',
  quarantine: 'bad', quarantined: 'bad', failed: 'bad', FAIL: 'bad', refused: 'bad', damaged: 'bad', expired: 'bad',
};
export const WORDS = { PASS_LOW_STRESS: 'pass, low stress', INCONCLUSIVE: 'inconclusive', PASS: 'pass', FAIL: 'fail' };
/** A state as a shape and a word, with a colour beside. */
export const State = ({ of, word }) => {
  const kind = KINDS[of] || 'soft';
  return html`<span class="state ${kind}"><span aria-hidden="true">${SHAPES[kind]}</span> ${word || WORDS[of] || of}</span>`;
};

/** A bar with its number in it. `share`: 0 to 1, or null. */
export const Bar = ({ share, text, bad = 0, kind = '' }) => html`<span class="bar ${kind}">
  ${share !== null && html`<span class="fill" style=${{ width: `${Math.min(1, share) * 100}%` }}></span>`}
  ${bad > 0 && html`<span class="fill bad" style=${{ left: `${(share - bad) * 100}%`, width: `${bad * 100}%` }}></span>`}
  <span class="in">${text}</span></span>`;

/** The last hour as a small line; decoration beside a number. */
export class Spark extends Component {
  shouldComponentUpdate(next) { return next.values !== this.props.values || next.most !== this.props.most; }
  render({ values, most }) {
    const top = most || Math.max(1, ...values);
    let path = '', open = false;
    values.forEach((value, at) => {
      if (value === null) return void (open = false);
      path += `${open ? 'L' : 'M'}${((at * 71) / (values.length - 1)).toFixed(1)} ${(19 - (Math.min(value, top) / top) * 18).toFixed(1)}${open ? '' : 'h1'}`;
      open = true;
    });
    return html`<svg class="spark" viewBox="0 0 72 20" aria-hidden="true"><path d=${path} /></svg>`;
  }
}

class Row extends Component {
  shouldComponentUpdate(next) { return next.row !== this.props.row || next.columns !== this.props.columns; }
  render({ row, columns, note }) {
    const below = note && note(row);
    return html`<tr class=${below ? 'noted' : ''}>${columns.map((column, at) => html`<${at ? 'td' : 'th'} scope=${at ? undefined : 'row'} class=${column.kind || ''}>${column.cell(row)}<//>`)}</tr>
      ${below && html`<tr class="note"><td colspan=${columns.length}>${below}</td></tr>`}`;
  }
}

/** A table whose columns can be sorted: `{name, cell(row), by(row)?, kind?}`. Rows are drawn anew only where they are other objects. */
export function Table({ caption, columns, rows, id, note, first, empty }) {
  const [sorted, setSorted] = useState(first || null);
  const by = sorted && columns.find((column) => column.name === sorted.name)?.by;
  const shown = by ? [...rows].sort((a, b) => order(by(a), by(b)) * (sorted.down ? -1 : 1)) : rows;
  const sort = (name) => setSorted(sorted?.name !== name ? { name, down: false } : sorted.down ? null : { name, down: true });
  return html`<div class="scrolls" role="region" aria-label=${caption} tabindex="0"><table><caption class="unseen">${caption}</caption>
    <thead><tr>${columns.map((column) => html`<th scope="col" class=${column.kind || ''}
      aria-sort=${sorted?.name === column.name ? (sorted.down ? 'descending' : 'ascending') : column.by ? 'none' : undefined}>
      ${column.by ? html`<button class="sort" onClick=${() => sort(column.name)}>${column.name}<span aria-hidden="true">${
        sorted?.name === column.name ? (sorted.down ? ' ▾' : ' ▴') : ''}</span></button>` : column.name}</th>`)}</tr></thead>
    <tbody>${shown.map((row) => html`<${Row} key=${id(row)} row=${row} columns=${columns} note=${note} />`)}
      ${!rows.length && html`<tr><td class="none" colspan=${columns.length}>${empty}</td></tr>`}</tbody></table></div>`;
}

function order(a, b) {
  if (a === b) return 0;
  if (a === null || a === undefined) return 1;
  if (b === null || b === undefined) return -1;
  return typeof a === 'string' ? a.localeCompare(b, language, { numeric: true }) : a - b;
}

/** Ask again and again while a view is there: `{data, problem, again()}`. `ask` must be the same while `key` is. */
export function useLook(key, ask, everyS) {
  const [state, setState] = useState({ key, data: null, problem: '' });
  const again = useRef(() => {});
  useEffect(() => {
    let timer, gone = false;
    const once = async () => {
      clearTimeout(timer);
      try {
        const data = await ask();
        if (!gone) setState({ key, data, problem: '' });
      } catch (error) {
        if (!gone) setState((old) => ({ key, data: old.key === key ? old.data : null, problem: words(error) }));
      }
      if (!gone && everyS) timer = setTimeout(once, (document.hidden ? 5 : 1) * everyS * 1000);
    };
    again.current = once;
    once();
    return () => { gone = true; clearTimeout(timer); };
  }, [key, everyS]);
  const current = state.key === key ? state : { data: null, problem: '' };
  return { ...current, again: () => again.current() };
}

export const words = (error) => (error.name === 'AbortError' ? 'cancelled' : error.message);

/** A question before something is done that cannot be undone. */
export function Question({ asked, close }) {
  const dialog = useRef();
  useEffect(() => { if (asked) dialog.current.showModal(); }, [asked]);
  if (!asked) return null;
  return html`<dialog ref=${dialog} onClose=${close} aria-labelledby="question"><p id="question">${asked.text}</p>
    <form method="dialog"><button value="no">No</button> <button class="danger" value="yes" onClick=${asked.yes}>${asked.word}</button></form></dialog>`;
}
