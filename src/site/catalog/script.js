// Adds search and copy buttons to the page.
'use strict';

document.documentElement.classList.add('js');

document.addEventListener('DOMContentLoaded', () => {
  setUpSearch();
  addCopyButtons();
});

// Shows only the rows that contain all words of the query, and their number. Updates on every input.
function setUpSearch() {
  const input = document.getElementById('search');
  const status = addStatus();
  const sections = [...document.querySelectorAll('main section')].map((section) => ({
    name: section.id,
    count: document.querySelector(`nav a[href="#${section.id}"] + .count`),
    table: section.querySelector('table'),
    none: section.querySelector('.none'),
    rows: [...section.querySelectorAll('tbody tr')].map((row) => ({ row, text: searchable(row) })),
  }));

  function search() {
    const words = fold(input.value).split(/\s+/).filter(Boolean);
    for (const { count, table, none, rows } of sections) {
      let shown = 0;
      for (const { row, text } of rows) {
        row.hidden = !words.every((word) => text.includes(word));
        shown += row.hidden ? 0 : 1;
      }
      count.textContent = words.length ? `${shown} of ${rows.length}` : rows.length;
      if (table) {
        table.hidden = shown === 0;
        none.hidden = shown > 0;
      }
    }
    status.textContent = words.length ? sections.map(({ name, count }) => `${count.textContent} ${name}`).join(', ') : '';
  }

  input.addEventListener('input', search);
  input.addEventListener('keydown', (event) => {
    if (event.key !== 'Escape') return;
    input.value = '';
    search();
  });
  // On navigation back to the page, the browser restores the query.
  window.addEventListener('pageshow', search);
  document.querySelector('.search').hidden = false;
}

// Returns the searchable text of a row: its text and the paths of its links.
function searchable(row) {
  const links = [...row.querySelectorAll('a')].map((link) => decodeURIComponent(link.getAttribute('href')));
  return fold([row.textContent, ...links].join('\n'));
}

function fold(text) {
  return text.normalize().toLowerCase();
}

// Adds a button after each element with `data-copy`. The attribute is the description of the copied text.
function addCopyButtons() {
  const status = addStatus();
  for (const source of document.querySelectorAll('[data-copy]')) {
    const button = document.createElement('button');
    button.type = 'button';
    button.className = 'copy';
    button.title = `Copy ${source.dataset.copy}`;
    button.setAttribute('aria-label', button.title);
    source.after(button);
  }

  document.addEventListener('click', async (event) => {
    const button = event.target.closest('button.copy');
    if (!button) return;
    const source = button.previousElementSibling;
    const done = await copy(source.href ?? source.textContent);
    const mark = done ? 'done' : 'failed';
    status.textContent = done ? `Copied ${source.dataset.copy}` : `Could not copy ${source.dataset.copy}`;
    button.classList.add(mark);
    setTimeout(() => button.classList.remove(mark), 1500);
  });
}

// Adds an element whose text a screen reader announces when it changes.
function addStatus() {
  const status = document.createElement('p');
  status.className = 'unseen';
  status.setAttribute('role', 'status');
  document.body.append(status);
  return status;
}

// Copies `text` to the clipboard. Returns true on success.
async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    // `navigator.clipboard` is not available over plain HTTP, and can be denied. Fall back to `execCommand`.
  }
  const focused = document.activeElement;
  const area = document.createElement('textarea');
  area.className = 'unseen';
  area.value = text;
  document.body.append(area);
  area.select();
  const done = document.execCommand('copy');
  area.remove();
  focused?.focus();
  return done;
}
