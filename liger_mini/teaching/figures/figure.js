// Draws the course's figures on a page without a kernel: after the page's theme, with sliders that a keyboard reaches,
// with words that follow them, and with the numbers as a table. A page brings it once, after plotly.js.
(() => {
  // what is dark ink on white paper becomes light ink; the hues stay those that the text may name
  const AT_NIGHT = {
    '#000000': '#f2f2f2', '#1a1a1a': '#e8e8e8', '#ffffff': 'rgba(0,0,0,0)', '#e5e5e5': '#3b4149', '#555': '#b4bac2',
    '#666': '#a8aeb7', '#666666': '#a8aeb7', '#888888': '#a8aeb7', '#f2f2f2': '#2a3038', '#a8a8a8': '#6b737d',
    '#0072B2': '#4aa8e0', '#D55E00': '#f0803c', '#009E73': '#2bbf94',
    'rgba(255,255,255,0.7)': 'rgba(18,18,18,0.7)',
  }
  const night = () => document.documentElement.dataset.theme === 'dark'
  const themed = value => {
    if (typeof value === 'string') return (night() && AT_NIGHT[value]) || value
    if (Array.isArray(value)) return value.map(themed)
    if (value === null || typeof value !== 'object') return value
    return Object.fromEntries(Object.entries(value).map(([key, inner]) => [key, themed(inner)]))
  }
  const make = (tag, more, ...children) => {
    const made = Object.assign(document.createElement(tag), more)
    made.append(...children)
    return made
  }

  const drawn = []  // each figure's way to draw itself again
  const waiting = []
  let busy = false

  // one after the other, with room to paint in between: the first figure is there before the last is begun
  async function work() {
    if (busy) return
    busy = true
    for (let next; (next = waiting.shift());) {
      await next()
      performance.mark('figure drawn')
      await new Promise(done => setTimeout(done))
    }
    busy = false
  }

  window.drawFigure = id => {
    const plot = document.getElementById(id), figure = plot.closest('figure')
    const { data, layout, frames } = JSON.parse(figure.querySelector('script[type="application/json"]').textContent)
    const { controls, height = layout.height } = layout.meta
    const caption = figure.querySelector('figcaption')
    let shown = { data, layout }
    const show = () => {
      // the title stands above the plot as text that wraps, and sliders for a mouse alone are left out
      const { title, sliders, ...now } = { ...layout, ...shown.layout, height }
      now.margin = { ...now.margin, t: now.annotations ? 30 : 14 }
      return Plotly.react(plot, themed(shown.data), themed(now), { responsive: true, displayModeBar: false })
    }
    const say = ({ title, meta }) => {
      const name = plain(title.text)
      caption.textContent = meta.alt
      figure.querySelector('.title').textContent = name
      for (const named of [figure, plot]) named.setAttribute('aria-label', name)
    }
    if (controls && frames.length) {
      const settings = Object.values(controls)
      const inputs = settings.map(values => make('input', { type: 'range', min: 0, max: values.length - 1, value: 0 }))
      const outputs = settings.map(values => make('output', {}, values[0]))
      const move = () => {
        const chosen = inputs.reduce((sum, input, i) => sum * settings[i].length + +input.value, 0)  // the last one fastest
        inputs.forEach((input, i) => {
          outputs[i].textContent = settings[i][input.value]
          input.setAttribute('aria-valuetext', settings[i][input.value])
        })
        shown = frames[chosen]
        say(shown.layout)
        show()
      }
      const labels = Object.keys(controls).map((name, i) => {
        inputs[i].addEventListener('input', move)
        inputs[i].setAttribute('aria-valuetext', settings[i][0])
        return make('label', {}, name.replaceAll('_', ' ') + ' ', inputs[i], ' ', outputs[i])
      })
      plot.after(make('div', { className: 'controls' }, ...labels))
      shown = frames[0]
      say(shown.layout)  // the caption of this setting alone; the others come with the sliders
      caption.setAttribute('aria-live', 'polite')
    }
    const details = make('details', {}, make('summary', {}, 'The numbers as a table'))
    details.addEventListener('toggle', () => {
      details.querySelectorAll('.wide').forEach(old => old.remove())
      if (details.open) details.append(...tables(plot))
    })
    figure.append(details)
    drawn.push(show)
    waiting.push(show)
    work()
  }

  const number = x => (typeof x === 'number' ? +x.toPrecision(4) : x ?? '')
  const plain = words => String(words).replace(/<br>/g, ' ').replace(/<[^>]*>/g, '')

  // traces over the same x share a table; a matrix has one of its own
  function tables(plot) {
    const groups = new Map()
    for (const trace of plot._fullData.filter(trace => trace.visible === true)) {
      const layout = plot._fullLayout
      const axis = which => layout[`${which}axis${(trace[`${which}axis`] ?? '').slice(1)}`]?.title?.text ?? ''
      const name = plain(trace.name.startsWith('trace ') ? axis('y') || 'value' : trace.name)
      if (trace.z) {
        const x = [...(trace.x ?? trace.z[0].map((_, j) => j))], y = [...(trace.y ?? trace.z.map((_, i) => i))]
        groups.set(trace, { head: [`${axis('y')} \\ ${axis('x')}`, ...x], rows: y.map((v, i) => [v, ...trace.z[i]]) })
      } else if (trace.x && trace.y) {
        const [along, across] = trace.orientation === 'h' ? ['y', 'x'] : ['x', 'y']
        const x = [...trace[along]], key = JSON.stringify([along, trace[`${along}axis`], x])
        if (!groups.has(key)) groups.set(key, { head: [axis(along)], rows: x.map(v => [v]) })
        const group = groups.get(key)
        group.head.push(name)
        const words = trace.hovertext ?? (trace.mode?.includes('text') && trace.text)
        group.rows.forEach((row, i) => row.push(Array.isArray(words) ? `${number(trace[across][i])} ${words[i]}` : trace[across][i]))
      }
    }
    return [...groups.values()].map(({ head, rows }) => {
      const cells = (tag, values) => values.map(v => make(tag, {}, plain(number(v))))
      const body = rows.slice(0, 200).map(([first, ...rest]) =>
        make('tr', {}, make('th', { scope: 'row' }, plain(number(first))), ...cells('td', rest)))
      const table = make('table', {}, make('thead', {}, make('tr', {}, ...cells('th', head))), make('tbody', {}, ...body))
      const box = make('div', { className: 'wide', tabIndex: 0 }, table)
      box.setAttribute('role', 'group')
      box.setAttribute('aria-label', 'the numbers of the figure')
      return box
    })
  }

  new MutationObserver(() => {
    waiting.push(...drawn)
    work()
  }).observe(document.documentElement, { attributeFilter: ['data-theme'] })
})()
