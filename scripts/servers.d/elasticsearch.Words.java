import java.util.HashMap;
import java.util.List;
import java.util.Map;
import org.apache.lucene.analysis.TokenStream;
import org.apache.lucene.analysis.en.EnglishPossessiveFilter;
import org.apache.lucene.analysis.en.PorterStemFilter;
import org.apache.lucene.analysis.miscellaneous.ASCIIFoldingFilter;
import org.elasticsearch.index.analysis.AbstractTokenFilterFactory;
import org.elasticsearch.index.analysis.PreConfiguredTokenFilter;
import org.elasticsearch.index.analysis.TokenFilterFactory;
import org.elasticsearch.indices.analysis.AnalysisModule.AnalysisProvider;
import org.elasticsearch.plugins.AnalysisPlugin;
import org.elasticsearch.plugins.Plugin;

/**
 * What is used here of the module analysis-common, which every real Elasticsearch has and Maven Central has not: the token filters
 * asciifolding, porter_stem, and stemmer for English, under their names and with their settings.
 */
public class Words extends Plugin implements AnalysisPlugin {
  @Override
  public List<PreConfiguredTokenFilter> getPreConfiguredTokenFilters() {
    return List.of(
        PreConfiguredTokenFilter.singleton("asciifolding", true, ASCIIFoldingFilter::new),
        PreConfiguredTokenFilter.singleton("porter_stem", false, PorterStemFilter::new));
  }

  @Override
  public Map<String, AnalysisProvider<TokenFilterFactory>> getTokenFilters() {
    Map<String, AnalysisProvider<TokenFilterFactory>> filters = new HashMap<>();
    filters.put("stemmer", (index, environment, name, settings) -> new AbstractTokenFilterFactory(name) {
      private final String language = settings.get("language", "porter");

      @Override
      public TokenStream create(TokenStream tokens) {
        return switch (language) {
          case "porter", "english" -> new PorterStemFilter(tokens);
          case "possessive_english" -> new EnglishPossessiveFilter(tokens);
          default -> throw new IllegalArgumentException("this Elasticsearch, which is for tests, has no stemmer " + language + ": add it to Words.java");
        };
      }
    });
    return filters;
  }
}
