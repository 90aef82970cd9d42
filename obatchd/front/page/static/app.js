import { html, render } from "./vendor/standalone.module.js";

render(html`<h1>obatchd</h1>`, document.getElementById("page"));
