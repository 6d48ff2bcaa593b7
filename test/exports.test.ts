/** What the library's declarations mention, it exports: a program can name every type that it is given or asked for. */
import * as path from 'node:path';
import t from 'tap';
import ts from 'typescript-5.4';
import { TOP } from './helpers/command.js';

const ENTRY = path.join(TOP, 'build/src/index.d.ts');

/** Declarations of this package that those of `entry` lead to and that it does not export, each with who mentions it. */
function unexported(entry: string): Map<string, string> {
  const program = ts.createProgram([entry], {
    module: ts.ModuleKind.NodeNext,
    moduleResolution: ts.ModuleResolutionKind.NodeNext,
    target: ts.ScriptTarget.ES2022,
    skipLibCheck: true,
    noEmit: true,
  });
  const checker = program.getTypeChecker();
  const source = program.getSourceFile(entry) as ts.SourceFile;
  const resolved = (symbol: ts.Symbol) =>
    symbol.flags & ts.SymbolFlags.Alias ? checker.getAliasedSymbol(symbol) : symbol;
  const exported = new Set<ts.Symbol>();
  const addAll = (module: ts.Symbol) => {
    for (const symbol of checker.getExportsOfModule(module).map(resolved)) {
      exported.add(symbol);
      // `export * as NAME`
      if (symbol.flags & ts.SymbolFlags.ValueModule) addAll(symbol);
    }
  };
  addAll(checker.getSymbolAtLocation(source) as ts.Symbol);

  const missing = new Map<string, string>();
  // What is missing leads on, too.
  const reached = new Set(exported);
  const own = (node: ts.Node) => node.getSourceFile().fileName.startsWith(path.join(TOP, 'build/'));
  for (const symbol of reached) {
    for (const declaration of symbol.declarations ?? []) {
      if (ts.isSourceFile(declaration) || !own(declaration)) continue;
      const visit = (node: ts.Node): void => {
        const hidden = ts.canHaveModifiers(node)
          ? ts.getModifiers(node)?.some(({ kind }) => kind === ts.SyntaxKind.PrivateKeyword)
          : false;
        if (hidden) return;
        const name = mentioned(node);
        const at = name && checker.getSymbolAtLocation(name);
        const to = at && resolved(at);
        const [first] = to?.declarations ?? [];
        const leads = first && own(first) && !ts.isTypeParameterDeclaration(first) && !ts.isSourceFile(first);
        if (to !== undefined && leads && !reached.has(to)) {
          missing.set(to.name, `which ${symbol.name} mentions: export it in src/index.ts`);
          reached.add(to);
        }
        ts.forEachChild(node, visit);
      };
      visit(declaration);
    }
  }
  return missing;
}

/** The name of a type that a node mentions; `typeof VALUE` needs none. */
function mentioned(node: ts.Node): ts.Node | undefined {
  const right = (name: ts.EntityName) => (ts.isIdentifier(name) ? name : name.right);
  if (ts.isTypeReferenceNode(node)) return right(node.typeName);
  if (ts.isExpressionWithTypeArguments(node)) return node.expression;
  return ts.isImportTypeNode(node) && node.qualifier !== undefined ? right(node.qualifier) : undefined;
}

t.test('every type that an exported declaration mentions is exported', async (t) => {
  t.same(Object.fromEntries(unexported(ENTRY)), {});
});
