// Giving work: files or a folder dropped here, their settings, and a sample first.
import { html, useEffect, useRef, useState } from './vendor/standalone.module.js';
import { get, post, upload } from './api.js';
import { counted, size, useLook, visible, words } from './parts.js';

const SAMPLE = 20;
const BLOCK = 512;
const MOST_FILES = 10000;
const ACCEPTED_MS = 120000, TRIES = 5, BETWEEN_MS = 2000;

/** A folder as one tar archive. Its parts stay where they are on the disk: nothing is read before it is sent. */
export function packed(files) {
  const parts = [];
  for (const { path, file } of files) {
    parts.push(...head(path, file.size), file, filling(file.size));
  }
  return new Blob([...parts, new Uint8Array(2 * BLOCK)]);
}

const filling = (length) => new Uint8Array((BLOCK - (length % BLOCK)) % BLOCK);

function head(path, length) {
  const name = new TextEncoder().encode(path);
  if (name.length <= 100) return [block(name, length, '0')];
  const rest = name.length + ' path=\n'.length; // a pax header says the length of its line, with the digits of that
  const all = [1, 2, 3, 4, 5].map((digits) => rest + digits).find((sum) => String(sum).length === sum - rest);
  const line = new TextEncoder().encode(`${all} path=${path}\n`);
  return [block(new TextEncoder().encode('pax'), line.length, 'x'), line, filling(line.length), block(name.slice(0, 100), length, '0')];
}

function block(name, length, kind) {
  const bytes = new Uint8Array(BLOCK), put = (text, at) => bytes.set(new TextEncoder().encode(text), at);
  bytes.set(name, 0);
  put('0000600\0', 100);
  put('0000000\0', 108);
  put('0000000\0', 116);
  put(length.toString(8).padStart(11, '0') + ' ', 124); // 8 GiB at most, which no upload may have
  put('00000000000 ', 136);
  put('        ', 148);
  put(kind, 156);
  put('ustar\u000000', 257);
  put(bytes.reduce((sum, byte) => sum + byte, 0).toString(8).padStart(6, '0') + '\0 ', 148);
  return bytes;
}

/** What was dropped, as drops: a file each, or a folder with the files in it. Hidden files stay out. */
async function dropped(transfer) {
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
  if (!entries.length) return [...transfer.files].map(one); // of a browser that knows no folders
  return Promise.all(entries.map(async (entry) => (entry.isFile ? one(await fileOf(entry)) : folder(entry.name, await filesIn(entry, '')))));
}

const fileOf = (entry) => new Promise((resolve, reject) => entry.file(resolve, reject));

async function filesIn(entry, path) {
  const reader = entry.createReader(), found = [];
  for (;;) { // it gives a hundred at a time
    const some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
    if (!some.length) return found;
    for (const each of some.filter(({ name }) => !name.startsWith('.'))) {
      found.push(...(each.isFile ? [{ path: path + each.name, file: await fileOf(each) }] : await filesIn(each, `${path}${each.name}/`)));
    }
    if (found.length > MOST_FILES) throw new Error(`more than ${MOST_FILES} files; use obatchctl submit`);
  }
}

let count = 0;
const one = (file) => ({ key: ++count, name: file.name, content: file, bytes: file.size, words: size(file.size), state: 'chosen', sent: 0 });

function folder(name, files) {
  files.sort((a, b) => (a.path < b.path ? -1 : 1));
  const content = packed(files);
  return { key: ++count, name: `${name}.tar`, content, bytes: content.size, words: `folder, ${counted(files.length, 'file')}, ${size(content.size)}`, state: files.length ? 'chosen' : 'empty', sent: 0 };
}

function chosen(list) {
  const files = [...list];
  if (!files[0]?.webkitRelativePath) return files.map(one);
  const [name] = files[0].webkitRelativePath.split('/');
  const inside = files.map((file) => ({ path: file.webkitRelativePath.slice(name.length + 1), file })).filter(({ path }) => !/(^|\/)\./.test(path));
  return [folder(name, inside)];
}

function settingsOf(form) {
  const given = new FormData(form), settings = {}, text = (name) => (given.get(name) || '').trim();
  for (const name of ['model', 'label', 'system_message', 'priority', 'format']) if (text(name)) settings[name] = text(name);
  for (const name of ['context_length', 'max_response_tokens', 'repeat']) if (text(name)) settings[name] = Number(text(name));
  if (text('temperature')) settings.options = { temperature: Number(text('temperature')) };
  if (given.get('sample')) settings.sample = SAMPLE;
  return settings;
}

/** The job of a file that was sent. Its token makes it one job, however often an answer is lost and this is said again. */
async function accepted(asked) {
  for (let tries = 1; ; tries++) {
    try {
      return (await post('/jobs', asked, ACCEPTED_MS)).job.job;
    } catch (error) {
      if (error.status || tries === TRIES) throw error; // a refusal is an answer
    }
    await new Promise((resolve) => setTimeout(resolve, BETWEEN_MS));
  }
}

const secret = () => [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, '0')).join('');

const drops = { list: [], sending: null }; // they outlive a look at another view

export function Submit({ again }) {
  const [, redraw] = useState(0);
  const [over, setOver] = useState(false);
  const [problem, tell] = useState('');
  const form = useRef();
  const alive = useRef(true);
  useEffect(() => () => { alive.current = false; }, []);
  const draw = () => alive.current && redraw((drawn) => drawn + 1);
  const { data: models } = useLook('models', () => get('/models'));
  const take = async (found) => {
    tell('');
    try {
      drops.list = [...drops.list.filter((drop) => drop.state !== 'chosen'), ...(await found)];
    } catch (error) { tell(words(error)); }
    draw();
  };
  const drop = (event) => { event.preventDefault(); setOver(false); take(dropped(event.dataTransfer)); };

  const send = async (drop, settings, token = secret()) => {
    Object.assign(drop, { state: 'sending', sent: 0, problem: '', settings, token });
    draw();
    try {
      const sending = upload(drop.content, (bytes) => { drop.sent = Math.min(bytes, drop.bytes); draw(); });
      drops.sending = { drop, abort: sending.abort };
      const file = await sending.done;
      drop.state = 'accepting';
      draw();
      Object.assign(drop, { job: await accepted({ file, name: drop.name, settings, token }), state: 'done' });
      again();
    } catch (error) {
      Object.assign(drop, { state: error.name === 'AbortError' ? 'cancelled' : 'refused', problem: words(error) });
    }
    drops.sending = null;
    draw();
  };
  const submit = async (event) => {
    event.preventDefault();
    const settings = settingsOf(form.current);
    for (const drop of drops.list.filter(({ state }) => state === 'chosen')) await send(drop, settings);
  };
  const whole = (drop) => {
    const { sample, ...settings } = drop.settings;
    return send(drop, { ...settings, skip_done: drop.job });
  };
  const anew = (drop) => send(drop, drop.settings, drop.token); // the job of an answer that was lost is found by it
  const ready = drops.list.filter(({ state }) => state === 'chosen').length;
  return html`<form ref=${form} class="submit" onSubmit=${submit}>
    <div class=${`zone ${over ? 'over' : ''}`} onDragOver=${(event) => { event.preventDefault(); setOver(true); }} onDragLeave=${() => setOver(false)} onDrop=${drop}>
      <p><b>Drop a file or a folder here</b>, or choose</p>
      <p><label class="button">Files … <input type="file" multiple onChange=${(event) => { take(chosen(event.target.files)); event.target.value = ''; }} /></label>
      <label class="button">A folder … <input type="file" webkitdirectory onChange=${(event) => { take(chosen(event.target.files)); event.target.value = ''; }} /></label></p>
      <p class="quiet">JSON Lines, CSV, text, workbooks, archives: all that <code>obatchctl submit</code> takes. A file is a job, a folder is one job.</p></div>
    ${problem && html`<p class="is-bad" role="alert">${problem}</p>`}
    ${drops.list.length > 0 && html`<ul class="drops">${drops.list.map((drop) => html`<${Drop} key=${drop.key} drop=${drop} sent=${drop.sent} whole=${whole} anew=${anew} busy=${drops.sending !== null} />`)}</ul>`}
    <fieldset><legend>Settings <span class="quiet">left empty: as the drop or the daemon has them</span></legend><div class="fields">
      <label>Model <input name="model" list="models" autocomplete="off" /></label><datalist id="models">${(models?.models || []).map(({ name }) => html`<option value=${name} />`)}</datalist>
      <label>Label <input name="label" maxlength="100" autocomplete="off" /></label>
      <label>Priority <select name="priority"><option value="">default</option><option>high</option><option>normal</option><option>low</option></select></label>
      <label>Answer as <select name="format"><option value="">default</option><option value="json">JSON</option></select></label>
      <label>Context, tokens <input name="context_length" type="number" min="1" step="1" /></label>
      <label>Answer at most, tokens <input name="max_response_tokens" type="number" min="1" step="1" /></label>
      <label>Temperature <input name="temperature" type="number" min="0" max="5" step="any" /></label>
      <label>Answers to each prompt <input name="repeat" type="number" min="1" step="1" /></label>
      <label class="all">System message <textarea name="system_message" rows="2"></textarea></label></div></fieldset>
    <p><label><input type="checkbox" name="sample" /> Try ${SAMPLE} first, chosen at random</label></p>
    <p><button class="main" disabled=${!ready || drops.sending !== null}>Submit${ready ? ` ${counted(ready, 'job')}` : ''}</button></p></form>`;
}

function Drop({ drop, whole, anew, busy }) {
  const { state } = drop;
  return html`<li><b>${visible(drop.name)}</b> <span class="quiet">${drop.words}</span>
    ${state === 'sending' && html`<progress max=${drop.bytes || 1} value=${drop.sent} aria-label=${`Sent of ${drop.name}`}></progress> ${size(drop.sent)} of ${size(drop.bytes)}
      <button type="button" class="small" onClick=${() => drops.sending?.abort()}>Cancel</button>`}
    ${state === 'accepting' && html`<span role="status">sent; becoming a job …</span>`}
    ${state === 'done' && html`<span role="status">● <a href=${`#/jobs/${drop.job}`}>job ${drop.job}</a>${drop.settings.sample ? ` tries ${SAMPLE} of it` : ''}</span>
      ${drop.settings.sample && html` <button type="button" class="small" disabled=${busy} onClick=${() => whole(drop)}>Run all of it</button>`}`}
    ${state === 'empty' && html`<span class="is-bad">no file is in it</span>`}
    ${(state === 'refused' || state === 'cancelled') && html`<span class=${state === 'refused' ? 'is-bad' : ''} role="status">${state}${state === 'refused' ? `: ${visible(drop.problem)}` : ''}</span>
      <button type="button" class="small" disabled=${busy} onClick=${() => anew(drop)} aria-label=${`Try ${drop.name} again`}>Try again</button>`}</li>`;
}
