/* Comfort only: every page works without this file.
   Header rows, leaving with changes, relative times, selections, busy buttons. */
"use strict";

(() => {
  const each = (selector, work, root = document) => root.querySelectorAll(selector).forEach(work);
  document.documentElement.dataset.script = "on";

  /* Times: "3 min ago" stays true. The same words as the server's. */
  const units = [[86400, "d"], [3600, "h"], [60, "min"]];
  const span = (seconds) => {
    const unit = units.find(([size]) => seconds >= size);
    return unit ? `${Math.floor(seconds / unit[0])} ${unit[1]}` : `${Math.max(0, Math.round(seconds))} s`;
  };
  const ago = (at, isDue) => {
    const age = (Date.now() - at) / 1000;
    if (isDue && age >= 0) return "now"; // what is due stays so until it is done
    if (age < 0) return age < -1 ? `in ${span(-age)}` : "now";
    return age < 5 ? "just now" : `${span(age)} ago`;
  };
  const tick = () => each("time[data-relative]", (time) => { time.textContent = ago(Date.parse(time.dateTime), "due" in time.dataset); });
  setInterval(tick, 5000);

  /* A choice in the top bar takes effect at once. Keyboard users change it with the arrows: wait until they leave. */
  each("select[data-submits]", (select) => {
    let byKey = false;
    select.addEventListener("keydown", (event) => {
      byKey = event.key !== "Enter";
      if (event.key === "Enter") select.form.requestSubmit();
    });
    select.addEventListener("pointerdown", () => { byKey = false; });
    select.addEventListener("change", () => { if (!byKey) select.form.requestSubmit(); });
    select.addEventListener("blur", () => {
      if (byKey && !select.selectedOptions[0]?.defaultSelected) select.form.requestSubmit();
    });
  });

  /* The browser's own time zone is offered, too. */
  each("select[data-zones]", (select) => {
    const own = Intl.DateTimeFormat().resolvedOptions().timeZone;
    if (own && ![...select.options].some((one) => one.value === own)) select.add(new Option(own), 0);
  });

  /* Menus close when one clicks or presses Escape elsewhere. */
  const menus = "details.account, details.multi";
  document.addEventListener("click", (event) => each(menus, (menu) => { if (!menu.contains(event.target)) menu.open = false; }));
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    each(menus, (menu) => { if (menu.open) { menu.open = false; menu.querySelector("summary").focus(); } });
  });

  /* What just happened gets the focus: errors first. */
  (document.querySelector("#errors[data-focus]") ?? document.querySelector("[data-focus]"))?.focus();

  /* Header rows. */
  const rows = document.querySelector("[data-rows]");
  if (rows) {
    const form = rows.closest("form");
    const pattern = document.getElementById("header-row").content.firstElementChild;
    const most = Number(rows.dataset.rows);
    const add = form.querySelector("[data-add]");
    const renumber = () => {
      const all = rows.querySelectorAll("[data-row]");
      all.forEach((row, n) => {
        row.querySelectorAll("input").forEach((input) => {
          const part = input.dataset.part ?? input.name.split(".")[2];
          input.name = `headers.${n}.${part}`;
          if (input.type !== "hidden") {
            input.id = `f-headers-${n}-${part}`;
            const label = input.closest(".field").querySelector("label");
            label.htmlFor = input.id;
            label.querySelector(".visually-hidden").textContent = `of header ${n + 1}`;
          }
        });
        const remove = row.querySelector("[data-remove]");
        remove.value = `remove-header.${n}`;
        remove.setAttribute("aria-label", `Remove header ${n + 1}`);
        row.querySelector(".live").id = `live-headers-${n}`;
      });
      add.disabled = all.length >= most;
    };
    const changed = () => form.dispatchEvent(new Event("input", { bubbles: true }));
    add.addEventListener("click", (event) => {
      event.preventDefault();
      rows.append(pattern.cloneNode(true));
      renumber();
      rows.lastElementChild.querySelector("input").focus();
    });
    rows.addEventListener("click", (event) => {
      const remove = event.target.closest("[data-remove]");
      if (!remove) return;
      event.preventDefault();
      remove.closest("[data-row]").remove();
      renumber();
      changed();
      (rows.querySelector("[data-row]:last-child input") ?? add).focus();
    });
    renumber();
  }

  /* Leaving with changes asks. */
  each("form[data-guard]", (form) => {
    let changed = "changed" in form.dataset;
    form.addEventListener("input", () => { changed = true; });
    form.addEventListener("submit", () => { changed = false; });
    addEventListener("beforeunload", (event) => { if (changed) event.preventDefault(); });
  });

  /* A form that was kept until a new sign-in comes back by itself. */
  each("form[data-continues]", (form) => form.submit());

  /* A button that takes a while says so, and is not pressed twice. */
  document.addEventListener("submit", (event) => {
    const button = event.submitter;
    const busyText = button?.dataset.busy ?? event.target.dataset.busy;
    if (!busyText || event.target.getAttribute("target")) return;
    setTimeout(() => { button.textContent = busyText; button.disabled = true; }); /* after the form has been read */
  });
  addEventListener("pageshow", (event) => { if (event.persisted) location.reload(); });

  /* Copy buttons. */
  if (navigator.clipboard) each("[data-copy]", (button) => {
    button.hidden = false;
    button.addEventListener("click", async () => {
      await navigator.clipboard.writeText(document.getElementById(button.dataset.copy).textContent);
      button.textContent = "Copied";
    });
  });

  /* How many are selected. */
  each("form[data-select]", (form) => {
    const count = form.querySelector("[data-count]");
    const some = form.querySelector("input[name=which][value=some]");
    const chooseSome = () => { if (some) some.checked = true; };
    const showCount = () => {
      const chosen = form.querySelectorAll(".select-cell input:checked").length;
      if (count) count.textContent = chosen ? `: ${chosen}` : "";
    };
    form.addEventListener("change", (event) => {
      if (event.target.closest(".select-cell")) chooseSome();
      showCount();
    });
    const boxes = form.querySelectorAll(".select-cell input:not(:disabled)");
    const head = form.querySelector("th.narrow");
    if (head && boxes.length > 1) {
      const all = document.createElement("input");
      all.type = "checkbox";
      all.id = "select-page";
      const label = document.createElement("label");
      label.className = "hit";
      const name = document.createElement("span");
      name.className = "visually-hidden";
      name.textContent = "Select all on this page";
      label.append(all, name);
      head.replaceChildren(label);
      all.addEventListener("change", () => {
        boxes.forEach((box) => { box.checked = all.checked; });
        chooseSome();
        showCount();
      });
    }
    showCount();
  });

  /* Fragments that htmx loads: reload the page if the session has ended meanwhile. */
  document.addEventListener("htmx:beforeSwap", (event) => {
    if (new URL(event.detail.xhr.responseURL || location.href).pathname === "/sign-in") {
      event.detail.shouldSwap = false;
      const form = document.querySelector("form[data-guard]");
      if (form) form.requestSubmit(); /* the page that asks to sign in keeps what was entered */
      else location.reload();
    }
  });

  /* A part of the page that is loaded again and again says if that fails; the next one that succeeds replaces it. */
  ["htmx:responseError", "htmx:sendError", "htmx:timeout"].forEach((failure) => {
    document.addEventListener(failure, (event) => {
      const part = event.detail.elt;
      if (!part.matches("[hx-trigger^=every]")) return;
      const answer = new DOMParser().parseFromString(event.detail.xhr.responseText || "", "text/html");
      const why = answer.querySelector(".failure h1 + p")?.textContent || "The console doesn't answer.";
      const text = `Not up to date any more. ${why}`;
      const notice = part.querySelector(":scope > .stale") || document.createElement("p");
      if (notice.textContent === text) return;
      notice.className = "notice notice-stopped stale";
      notice.setAttribute("role", "alert");
      notice.textContent = text;
      part.prepend(notice);
    });
  });

  /* A part of the page that is loaded again keeps what was opened in it, and waits while text in it is selected.
     htmx keeps the focus of elements that have an id. */
  let opened = [];
  document.addEventListener("htmx:beforeSwap", (event) => {
    const old = event.detail.target, selection = getSelection();
    opened = [...old.querySelectorAll("details[open][id]")].map((one) => one.id);
    if (!selection.isCollapsed && selection.containsNode(old, true)) event.detail.shouldSwap = false;
  });
  document.addEventListener("htmx:afterSwap", () => {
    opened.forEach((id) => document.getElementById(id)?.setAttribute("open", ""));
    tick();
  });
})();
