// What the page can do beyond being read: search, and copy.
'use strict';

document.documentElement.classList.add('js');

document.addEventListener('DOMContentLoaded', () => {
  setUpSearch();
  addCopyButtons();
});

// Shows the rows that have all words of the query, as it is typed, and how many there are.
function setUpSearch() {
  const input = document.getElementById('search');
  const told = addStatus();
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
    told.textContent = words.length ? sections.map(({ name, count }) => `${count.textContent} ${name}`).join(', ') : '';
  }

  input.addEventListener('input', search);
  input.addEventListener('keydown', (event) => {
    if (event.key !== 'Escape') return;
    input.value = '';
    search();
  });
  // A browser that comes back to the page has kept the query.
  window.addEventListener('pageshow', search);
  document.querySelector('.search').hidden = false;
}

// All that a row can be found by: what stands in it, and the paths that its links lead to.
function searchable(row) {
  const links = [...row.querySelectorAll('a')].map((link) => decodeURIComponent(link.getAttribute('href')));
  return fold([row.textContent, ...links].join('\n'));
}

function fold(text) {
  return text.normalize().toLowerCase();
}

// A button beside everything that is marked with `data-copy`, which says what it is.
function addCopyButtons() {
  const told = addStatus();
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
    told.textContent = done ? `Copied ${source.dataset.copy}` : `Could not copy ${source.dataset.copy}`;
    button.classList.add(mark);
    setTimeout(() => button.classList.remove(mark), 1500);
  });
}

// What a screen reader reads aloud when its text changes.
function addStatus() {
  const status = document.createElement('p');
  status.className = 'unseen';
  status.setAttribute('role', 'status');
  document.body.append(status);
  return status;
}

// Whether `text` could be copied.
async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    // Over plain http there is no `navigator.clipboard`, and elsewhere it may be forbidden. The old way works then.
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
