// The form above the page: what it asks goes to the trace in the kernel, and what comes back is shown.

function make(tag, attributes, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

function field(name, label, attributes = {}) {
  return make("label", {}, label, make("input", { name, type: "text", autocomplete: "off", ...attributes }));
}

function form(button, fields, ask) {
  const made = make("form", {}, ...fields, make("button", { type: "submit" }, button));
  made.addEventListener("submit", (event) => {
    event.preventDefault();
    ask(Object.fromEntries(new FormData(made)));
  });
  made.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.target.tagName !== "INPUT") return;
    event.preventDefault(); // JupyterLab keeps Enter to itself
    made.requestSubmit();
  });
  return made;
}

function render({ model, el }) {
  const list = `gradtrace-${Math.random().toString(36).slice(2)}`;
  const said = make("p", { role: "status" });
  const steps = make("pre", { tabindex: 0, role: "group", "aria-label": "Steps of the path" });
  const frame = make("iframe", { sandbox: "allow-scripts allow-downloads", title: "gradtrace report" });
  let number = 0;
  const ask = (what) => (fields) => {
    said.textContent = "asking the trace …";
    model.set("asked", { example: "", ...fields, ask: what, number: ++number });
    model.save_changes();
  };
  const ofPage = form("Show", [
    field("of", "Parameters", { placeholder: "all, or globs: encoder*, head*", size: 30, list }),
    field("components", "Components", { placeholder: "the page's choice, or names", size: 26 }),
  ], ask("page"));
  const kinds = model.get("kinds").map((kind) => make("option", {}, kind));
  const ofPath = form("Follow its path", [
    field("parameter", "One scalar of", { required: "", list }),
    field("index", "at", { placeholder: "0, 3", size: 8 }),
    ...(model.get("examples") ? [field("example", "example", { placeholder: "the batch", size: 8 })] : []),
    make("label", {}, "trace", make("select", { name: "kind" }, ...kinds)),
  ], ask("path"));
  const names = Object.entries(model.get("leaves")).map(([name, shape]) => make("option", { value: name, label: `${name} [${shape.join(", ")}]` }));
  steps.hidden = true;
  const show = () => (frame.srcdoc = model.get("page"));
  const tell = () => {
    const answer = model.get("answer");
    said.textContent = answer.error ?? "";
    said.classList.toggle("error", "error" in answer);
    if (!("path" in answer)) return;
    steps.textContent = answer.path;
    steps.hidden = false;
  };
  model.on("change:page", show);
  model.on("change:answer", tell);
  show();
  el.classList.add("gradtrace");
  el.dataset.lmSuppressShortcuts = "true"; // a notebook has commands on single keys
  el.append(make("datalist", { id: list }, ...names), ofPage, ofPath, said, steps, frame);
  return () => {
    model.off("change:page", show);
    model.off("change:answer", tell);
  };
}

export default { render };
