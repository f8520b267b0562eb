"""Weighted CV of calibrators. usage: h3_exp.py calibrate | both"""
import sys, numpy as np
from scipy.optimize import minimize
from dermlens.bundle.bundle import load_bundle
from dermlens.bundle.limits import mix_weights
from dermlens.evaluation.calibration import _parts
from dermlens.evaluation.bootstrap import lesion_classes
b=load_bundle('src/dermlens/models/default'); C=8
prior=np.array(b.calibration.training_prior); EQ=np.full(C,1/C); TR=np.array(b.card.training_mix.of(b.codes))
def lsm(z): z=z-z.max(1,keepdims=True); return z-np.log(np.exp(z).sum(1,keepdims=True))
def kish(w,les):
    t=np.bincount(les,weights=w); return t.sum()**2/(t**2).sum()
# parametrisation: z = a*(logits - log prior?) ; current: logits*a + bias + log share - log prior
def fitter(kind, var=0.5, mixw=EQ, slopevar=0.05):
    def fit(X,y,les):
        w=mix_weights(y,les,mixw); n=kish(w,les); w=w*n
        sh=np.log(mixw)-np.log(prior)
        k={'T':1,'bias':1+C,'slope':1+C,'vector':1+2*C,'prior':2,'priorbias':2+C}[kind]
        def unpack(t):
            a=np.exp(t[0]); bias=np.zeros(C); sl=np.zeros(C)
            g=0.
            if kind=='bias': bias=t[1:1+C]
            if kind=='slope': sl=t[1:1+C]
            if kind=='vector': bias=t[1:1+C]; sl=t[1+C:]
            if kind in('prior','priorbias'): g=t[1]
            if kind=='priorbias': bias=t[2:]
            return a,sl,bias,g
        def z(t,X,mix):
            a,sl,bias,g=unpack(t)
            return a*np.exp(sl)*X+bias+g*np.log(prior)+np.log(mix)-np.log(prior)
        def obj(t):
            a,sl,bias,g=unpack(t)
            l=-lsm(z(t,X,mixw))[np.arange(len(y)),y]
            return w@l+(bias**2).sum()/(2*var)+(sl**2).sum()/(2*slopevar)+g**2/(2*1.0)
        t=minimize(obj,np.zeros(k),method='L-BFGS-B').x
        return lambda X,mix: lsm(z(t,X,mix)), t
    return fit
def none(X,y,les): return (lambda X,mix: lsm(X+np.log(mix)-np.log(prior))), None
METH={'none':none,'T equal':fitter('T'),'T training-weights':fitter('T',mixw=TR),'T sqrt-weights':fitter('T',mixw=np.sqrt(TR)/np.sqrt(TR).sum()),
 'bias .5':fitter('bias',.5),'bias .1':fitter('bias',.1),'bias .03':fitter('bias',.03),
 'slope .02':fitter('slope',slopevar=.02),'slope .1':fitter('slope',slopevar=.1),
 'vector .03/.02':fitter('vector',.03,slopevar=.02),'vector .1/.05':fitter('vector',.1,slopevar=.05),'prior power':fitter('prior'),
 'T sqrt + bias .1':fitter('bias',.1,mixw=np.sqrt(TR)/np.sqrt(TR).sum())}
def cv(X,y,les,extra=None,R=4,P=5,seed=0):
    les=np.unique(les,return_inverse=True)[1]; cl=lesion_classes(y,les)
    L={m:np.zeros((2,len(y))) for m in METH}
    for r in range(R):
        part=_parts(cl,np.random.default_rng([seed,r]))[les]
        for p in range(P):
            k,nw=np.flatnonzero(part!=p),np.flatnonzero(part==p)
            Xk,yk,lk=X[k],y[k],les[k]
            if extra is not None: Xk=np.vstack([Xk,extra[0]]); yk=np.r_[yk,extra[1]]; lk=np.r_[lk,extra[2]+les.max()+1]
            lk=np.unique(lk,return_inverse=True)[1]
            for m,f in METH.items():
                pred,_=f(Xk,yk,lk)
                for i,mix in enumerate((EQ,TR)): L[m][i,nw]-=pred(X[nw],mix)[np.arange(len(nw)),y[nw]]/R
    base=L['T equal']
    for m in METH:
        out=[]
        for i,mix in enumerate((EQ,TR)):
            w=mix_weights(y,les,mix); g=base[i]-L[m][i]
            t=np.bincount(les,weights=w); mean=np.bincount(les,weights=w*g)/t; se=np.sqrt(((t*(mean-w@g))**2).sum())
            out.append('%.4f gain %+.4f (se %.4f)'%(w@L[m][i],w@g,se))
        print('%-18s equal %s | training %s'%(m,*out),flush=True)
if __name__=='__main__':
    D=np.load('/tmp/w/h3_roles.npz') if len(sys.argv)>1 and sys.argv[1]!='calibrate' else None
    k=b.lesions['calibrate']; X=k.logits.astype(float)
    if D is None: cv(X,k.classes,k.lesions)
    else:
        Xs,ys,ls=D['select_logits'].astype(float),D['select_y'],D['select_lesions']; ls=np.unique(ls,return_inverse=True)[1]
        lc=np.unique(k.lesions,return_inverse=True)[1]
        if sys.argv[1]=='fitcal_evalsel':  # fit on calibrate, score select
            les=ls
            for m,f in METH.items():
                pred,t=f(X,k.classes,lc); o=[]
                for mix in (EQ,TR):
                    w=mix_weights(ys,ls,mix); o.append(-(w@pred(Xs,mix)[np.arange(len(ys)),ys]))
                print('%-18s select: equal %.4f training %.4f'%(m,*o), None if t is None else np.round(t,2))
        elif sys.argv[1]=='pool': cv(X,k.classes,k.lesions,extra=(Xs,ys,ls))
        elif sys.argv[1]=='both': cv(np.vstack([X,Xs]),np.r_[k.classes,ys],np.r_[lc,ls+lc.max()+1])
