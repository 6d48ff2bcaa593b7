// node unexported.mjs INDEX.d.ts: prints, as JSON, what the declarations of a library mention and it does not export.
// Plain JavaScript, so that building bpfimg does not read the declarations of a second compiler.
import * as path from 'node:path';
import ts from 'typescript-5.4';

const [index] = process.argv.slice(2);
const build = path.resolve(path.dirname(index), '..') + path.sep;

/** Declarations of this package that those of `entry` lead to and that it does not export, each with who mentions it. */
function unexported(entry) {
  const program = ts.createProgram([entry], {
    module: ts.ModuleKind.NodeNext,
    moduleResolution: ts.ModuleResolutionKind.NodeNext,
    target: ts.ScriptTarget.ES2022,
    skipLibCheck: true,
    noEmit: true,
  });
  const checker = program.getTypeChecker();
  const source = program.getSourceFile(entry);
  const resolved = (symbol) => (symbol.flags & ts.SymbolFlags.Alias ? checker.getAliasedSymbol(symbol) : symbol);
  const exported = new Set();
  const addAll = (module) => {
    for (const symbol of checker.getExportsOfModule(module).map(resolved)) {
      exported.add(symbol);
      // `export * as NAME`
      if (symbol.flags & ts.SymbolFlags.ValueModule) addAll(symbol);
    }
  };
  addAll(checker.getSymbolAtLocation(source));

  const missing = new Map();
  // What is missing leads on, too.
  const reached = new Set(exported);
  const own = (node) => node.getSourceFile().fileName.startsWith(build);
  for (const symbol of reached) {
    for (const declaration of symbol.declarations ?? []) {
      if (ts.isSourceFile(declaration) || !own(declaration)) continue;
      const visit = (node) => {
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
function mentioned(node) {
  const right = (name) => (ts.isIdentifier(name) ? name : name.right);
  if (ts.isTypeReferenceNode(node)) return right(node.typeName);
  if (ts.isExpressionWithTypeArguments(node)) return node.expression;
  return ts.isImportTypeNode(node) && node.qualifier !== undefined ? right(node.qualifier) : undefined;
}

process.stdout.write(JSON.stringify(Object.fromEntries(unexported(path.resolve(index)))));
