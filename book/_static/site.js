// Boxes that scroll can be reached by keyboard, and only those.
(() => {
  const BOXES = '.highlight pre, .output pre, .wide, .pst-scrollable-table-container, mjx-container[display="true"], div.math, .cell_output .output'
  const reach = () => document.querySelectorAll(BOXES).forEach(box => {
    const scrolls = box.scrollWidth > box.clientWidth + 1 || box.scrollHeight > box.clientHeight + 1
    const overflow = getComputedStyle(box)
    if (scrolls && [overflow.overflowX, overflow.overflowY].some(how => how === 'auto' || how === 'scroll')) box.tabIndex = 0
    else if (!box.matches('.wide')) box.removeAttribute('tabindex')
  })
  addEventListener('load', reach)
  addEventListener('resize', reach)
  // the rows of a table that every filter lets through, and how many they are
  const filter = () => {
    const chosen = [...document.querySelectorAll('.filters select')], rows = [...document.querySelectorAll('.matrix tbody tr')]
    rows.forEach(row => { row.hidden = chosen.some(by => by.value && row.cells[by.dataset.column].textContent !== by.value) })
    document.querySelector('.filters output').textContent = `${rows.filter(row => !row.hidden).length} of ${rows.length} rows`
  }
  addEventListener('change', event => event.target.closest('.filters') && filter())
  // buttons that the theme draws as a picture alone; its tooltips take the title away
  const name = () => document.querySelectorAll('button:not([aria-label])').forEach(button => {
    const words = button.title || button.dataset.bsOriginalTitle || button.dataset.tooltip
    if (words) button.setAttribute('aria-label', words)
  })
  // the theme's sidebar is a landmark, so that a screen reader can go there and leave it out
  const place = () => {
    const sidebar = document.getElementById('pst-primary-sidebar')
    sidebar?.setAttribute('role', 'complementary')
    sidebar?.setAttribute('aria-label', 'The book')
  }
  addEventListener('DOMContentLoaded', place)
  addEventListener('DOMContentLoaded', name)
  addEventListener('load', name)
})()
