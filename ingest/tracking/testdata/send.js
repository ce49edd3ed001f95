// Sends events with Segment's client for Node.js: send.js URL WRITE_KEY COUNT PAUSE_MS.
const { createRequire } = require('module')
const { Analytics } = createRequire(process.cwd() + '/')('@segment/analytics-node')

const [url, writeKey, count, pause] = process.argv.slice(2)
const analytics = new Analytics({ host: url, writeKey, flushAt: 7, flushInterval: 50, maxRetries: 1000 })
let sent = 0
const timer = setInterval(() => {
  analytics.track({ userId: 'user-' + (sent % 5), event: 'Sent', properties: { n: sent } })
  if (++sent < Number(count)) return
  clearInterval(timer)
  // It resolves when every event is delivered, or given up.
  analytics.closeAndFlush({ timeout: 60000 }).then(() => console.log('done'))
}, Number(pause))
