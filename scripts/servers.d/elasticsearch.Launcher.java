import java.nio.file.Path;
import java.util.List;
import java.util.Map;
import java.util.concurrent.CountDownLatch;
import org.elasticsearch.common.logging.LogConfigurator;
import org.elasticsearch.common.settings.Settings;
import org.elasticsearch.node.InternalSettingsPreparer;
import org.elasticsearch.node.Node;
import org.elasticsearch.plugins.PluginsLoader;

/**
 * Starts Elasticsearch from its jars, for tests alone: its distribution, with launcher and entitlements, is not on Maven Central.
 * Arguments are the folder of its configuration, and settings, name=value. It ends cleanly with SIGTERM.
 */
class Launcher {
  public static void main(String[] args) throws Exception {
    Settings.Builder settings = Settings.builder();
    for (String arg : List.of(args).subList(1, args.length)) {
      String[] setting = arg.split("=", 2);
      settings.put(setting[0], setting[1]);
    }
    LogConfigurator.registerErrorListener();
    LogConfigurator.configureWithoutConfig(settings.build());
    var environment = InternalSettingsPreparer.prepareEnvironment(settings.build(), Map.of(), Path.of(args[0]), () -> "test");
    var node = new Node(environment, PluginsLoader.createPluginsLoader(
        PluginsLoader.loadModulesBundles(environment.modulesDir(), false),
        PluginsLoader.loadPluginsBundles(environment.pluginsDir(), false), Map.of()));
    Runtime.getRuntime().addShutdownHook(new Thread(() -> {
      try {
        node.close();
      } catch (Exception e) {
        e.printStackTrace();
      }
    }));
    node.start();
    new CountDownLatch(1).await(); // every thread of a node is a daemon
  }
}
