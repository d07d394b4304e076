from plugin import plugin

plugin.run()
